"""What a run shows of itself between steps: sample grids and scores.

They read the state and change nothing of it: a run with them is bit-identical
to one without.
"""

import os

from irepa_jax.distributed import processes
from irepa_jax.evals import pictures
from irepa_jax.jobs import scoring
from irepa_jax.train import loop


class Reports:
  """Makes grids and scores from a state."""

  def __init__(self, built, config, mesh, manifest):
    """Opens all that is needed, so that what is missing is told at the start."""
    self._config = config
    self._sampler = scoring.Sampler(built, config, mesh, manifest)
    self._evaluator = scoring.open_(self._sampler)

  def hooks(self, log, stop, workdir):
    """Returns the hooks of the loop."""
    config = self._config

    def grid(state, step):
      images, _ = self._sampler.images(state, config.sample_count, stop, step)
      if processes.is_first() and len(images):
        sheet = pictures.grid(images, columns=self._columns())
        path = os.path.join(workdir, 'samples', f'{step:07d}.png')
        pictures.write(path, sheet)
        log.images(step, 'samples', sheet)

    def scores(state, step):
      count = config.eval_count
      if step == config.steps and config.eval_final_count:
        count = config.eval_final_count
      values = self._evaluator.scores(state, step, count, stop, workdir)
      return {f'eval/{name}': value for name, value in values.items()}

    found = [loop.Hook('sample', config.sample_every, grid)]
    if self._evaluator:
      found.append(loop.Hook('eval', config.eval_every, scores))
    return tuple(found)

  @property
  def metrics(self):
    """The metrics that the curve of a finished run shows."""
    return self._evaluator.metrics if self._evaluator else ()

  def _columns(self):
    """One class per column where the labels go round."""
    if self._config.labels == 'balanced' and self._config.num_classes <= 16:
      return self._config.num_classes
    return None
