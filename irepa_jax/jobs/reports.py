"""What a run shows of itself between steps: sample grids and scores.

They read the state and change nothing of it: a run with them is bit-identical
to one without. config.evaluator names who scores:

  digits   a classifier that knows the digits of the quickstart
  fid      FID and its family, against config.eval_reference, with the weights
           of Inception from config.eval_inception

Images come from the first moving average with the run's seed, so that the
images of all steps share their noise and labels. Where the autoencoder learns
as well, images of the data set and what it makes of them stand beside them.
"""

import functools
import math
import os

from jax.experimental import multihost_utils
import numpy as np

from irepa_jax import build
from irepa_jax import errors
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.evals import digits
from irepa_jax.evals import generate
from irepa_jax.evals import generated
from irepa_jax.evals import judge as judges
from irepa_jax.evals import pictures
from irepa_jax.evals import references
from irepa_jax.evals import spaces
from irepa_jax.jobs import reconstructions
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup
from irepa_jax.train import loop

BATCH = 256  # images at a time, or the batch of the run where that is smaller


class Reports:
  """Makes grids and scores from a state."""

  def __init__(self, built, config, mesh, data):
    """Opens all that is needed, so that what is missing is told at the start."""
    self._config = config
    self._sampler = Sampler(built, config, mesh, data.manifest)
    self._evaluator = _evaluator(self._sampler)
    self._reconstruct = None
    if config.end_to_end and config.sample_every:
      self._reconstruct = reconstructions.Reconstructions(built, data)

  def hooks(self, log, stop, workdir):
    """Returns the hooks of the loop."""
    config = self._config

    def grid(state, step):
      images, _ = self._sampler.images(state, config.sample_count, stop, step)
      made, figures = np.zeros((0,)), {}
      if self._reconstruct:
        made, figures = self._reconstruct(self._sampler.decoder(state), state)
      if processes.is_first() and len(images):
        sheet = pictures.grid(images, columns=self._columns())
        if len(made):
          sheet = pictures.beside(sheet, pictures.pairs(made, len(sheet)))
        path = os.path.join(workdir, 'samples', f'{step:07d}.png')
        pictures.write(path, sheet)
        log.images(step, 'samples', sheet)
        log.note(f'step {step}: samples in {path}')
      return figures

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


class Sampler:
  """Makes images 0 .. count - 1 of a state."""

  def __init__(self, built, config, mesh, manifest):
    """Reads the decoder, so that missing weights are told at the start."""
    self.built, self.config = built, config
    self.mesh, self.manifest = mesh, manifest
    self.render = build.make_renderer(
        built, config, mesh, manifest.bias, manifest.scale
    )
    self._decoder = None
    if (config.sample_every or config.eval_every) and not config.end_to_end:
      self._decoder = setup.load_decoder(built, config, mesh)

  def decoder(self, state):
    """Returns the weights of the autoencoder, whole on every device."""
    if not self.config.end_to_end:
      return self._decoder
    return setup.whole(state.params['vae'], self.mesh)

  def parts(self, state, count, stop, step, render=None):
    """Yields generate.Part of this process; fewer when told to stop."""
    unit = sharding.row_parts(self.mesh)
    size = math.ceil(min(BATCH, self.config.batch_size, count) / unit) * unit
    return generate.generate(
        render or self.render,
        setup.sampling_weights(self.built, state.ema[0], self.decoder(state)),
        range(count),
        batch_size=size,
        mesh=self.mesh,
        poll=lambda: stop.reached(step),
    )

  def images(self, state, count, stop, step):
    """Returns (images, labels) on every process; fewer when told to stop."""
    return _gathered(list(self.parts(state, count, stop, step)), count)

  def round_trip(self, decoder, images):
    """Returns images uint8 [n h w 3] after the autoencoder and back."""
    codec, local = self.built.autoencoder, setup.local(decoder)
    mean, _ = np.split(codec.encode(local, images), 2, axis=-1)
    quantise = generate.QUANTISE[self.config.quantise]
    return np.asarray(quantise(codec.decode(local, mean)))


class Digits:
  """Judges whether a sample is the digit that was asked for."""

  metrics = ('eval/accuracy', 'eval/frechet')

  def __init__(self, sampler):
    self._sampler = sampler

  def scores(self, state, step, count, stop, workdir):
    """Returns the scores of a state; none when told to stop."""
    del workdir
    images, labels = self._sampler.images(state, count, stop, step)
    decoder = self._sampler.decoder(state)
    if not processes.is_first() or len(images) < count:
      return {}
    trip = functools.partial(self._sampler.round_trip, decoder)
    return digits.evaluate(images, labels) | digits.floor(trip)


class Frechet:
  """Judges by FID and its family; only features leave the devices."""

  metrics = ('eval/fid', 'eval/inception_score')

  def __init__(self, sampler):
    """Opens the reference and reads Inception: bad ones are told here."""
    config = sampler.config
    if not config.eval_reference:
      raise errors.UsageError(
          "config.eval_reference is empty; config.evaluator='fid' needs an npz,"
          ' a folder or a prepared data set to compare with'
      )
    spaces.inception_file(config.eval_inception)
    side = (config.image_size,) * 2
    reference = references.open_(config.eval_reference)
    references.check_side(reference, side)
    network = spaces.inception(config.eval_inception, mesh=sampler.mesh)
    references.check_spaces(reference, (network,))
    batch = math.ceil(BATCH / sampler.mesh.size) * sampler.mesh.size
    self._judge = judges.Judge(
        sampler.mesh, (network,), reference, batch_size=batch
    )
    self._sampler = sampler
    self._widths = generated.layout((network,), side, sampler.mesh)
    references.check_widths(reference, self._widths)
    self._render = generated.renderer(sampler.render, (network,), sampler.mesh)

  def scores(self, state, step, count, stop, workdir):
    """Writes evaluations/STEP-COUNT.json; returns the figures in it."""
    judge, found = self._judge, {}
    judge.open_reference()
    parts = list(self._sampler.parts(state, count, stop, step, self._render))

    def score():
      if sum(len(part.numbers) for part in parts) == count:
        summary = generated.summarise(parts, count, self._widths)
        found.update(judge.record(summary, self._about(step, count, workdir)))
        name = f'{step:07d}-{count}.json'
        judges.write(os.path.join(workdir, 'evaluations', name), found)

    processes.on_first(score)
    return {k: v for k, v in found.items() if isinstance(v, float)}

  def _about(self, step, count, workdir):
    config, manifest = self._sampler.config, self._sampler.manifest
    return saved_run.described(
        config,
        workdir,
        step=step,
        ema=0,
        autoencoder_sha256=manifest.autoencoder_sha256,
    ) | {'count': count, 'resolution': (config.image_size,) * 2}


EVALUATORS = {'digits': Digits, 'fid': Frechet}


def _evaluator(sampler):
  """Returns the evaluator that the configuration names, or None."""
  config = sampler.config
  if config.evaluator not in ('', *EVALUATORS):
    raise errors.UsageError(
        f'config.evaluator is {config.evaluator!r}; it must be one of'
        f' {sorted(EVALUATORS)}, or empty'
    )
  if config.eval_every and not config.evaluator:
    raise errors.UsageError(
        f'config.eval_every is {config.eval_every}, but config.evaluator is'
        f' empty; name one of {sorted(EVALUATORS)}, or set eval_every=0'
    )
  if not config.eval_every:
    return None
  return EVALUATORS[config.evaluator](sampler)


def _gathered(parts, count):
  """Brings the images of all processes together, in the order of numbers."""
  columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
  if not columns:
    return np.zeros((0,)), np.zeros((0,))
  short = count - len(columns[0])
  padded = [np.pad(c, [(0, short)] + [(0, 0)] * (c.ndim - 1)) for c in columns]
  padded[0][count - short :] = generate.NOBODY
  numbers, labels, images = multihost_utils.process_allgather(
      padded, tiled=True
  )
  order = [int(i) for i in np.argsort(numbers) if numbers[i] != generate.NOBODY]
  return images[order], labels[order]
