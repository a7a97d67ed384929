"""The training loop: batches in, steps, and what happens between steps.

It knows neither the model nor the configuration: `jobs.train` hands it a
compiled step and functions to call every so many steps (sample grids, scores).
Those read the state and never change it, so that a run with them is
bit-identical to a run without.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
from typing import Any
from typing import NamedTuple

from absl import logging
import jax

from irepa_jax import errors
from irepa_jax.distributed import preemption

PROFILE_AFTER = 10  # steps, so that the trace holds no compilation
# Steps handed to the devices ahead of the oldest unfinished one: enough to keep
# them busy, few enough to save in time when the machine is taken away.
AHEAD = 4


class Hook(NamedTuple):
  """Calls report(state, step) -> metrics every `every` steps and at the end."""

  name: str
  every: int
  report: Callable[[Any, int], dict[str, float]]


class Run(NamedTuple):
  """What the loop works with.

  step(state, batch, frozen, key) -> (state, metrics), compiled, donating state.
  batches: device batches from the position of the state onwards.
  meta: what a checkpoint remembers beside the state (JSON).
  rate(step) -> learning rate of a step, to be told with its metrics.
  describe(step) -> words on the batch of a step, for the error of a loss that
    is no longer a number.
  """

  step: Callable[..., Any]
  batches: Iterator[Any]
  frozen: Any
  key: jax.Array
  total: int
  checkpoints: Any
  meta: dict[str, Any]
  log: Any
  meter: Any
  stop: preemption.Preemption
  describe: Callable[[int], str]
  rate: Callable[[int], float] | None = None
  hooks: tuple[Hook, ...] = ()
  log_every: int = 100
  checkpoint_every: int = 5000
  max_skipped: int = 10
  profile: tuple[str, int] = ('', 0)


def train(run: Run, state) -> tuple[Any, int]:
  """Trains from state.step to run.total.

  Returns (state, exit status): 0 at the end, 75 after a preemption whose state
  is saved. Raises DivergedError when the loss is NaN for too long.
  """
  first = int(state.step)
  unfinished = collections.deque()
  run.meter.start(first)
  with contextlib.ExitStack() as trace:
    for step in range(first + 1, run.total + 1):
      with run.meter.waiting():
        batch = next(run.batches)
      _start_trace(run, step - first, trace)
      state, metrics = run.step(state, batch, run.frozen, run.key)
      _stop_trace(run, step - first, trace, metrics)
      unfinished.append(metrics)
      if len(unfinished) > AHEAD:
        jax.block_until_ready(unfinished.popleft())
      run.meter.stepped(step)
      run.stop.alive()
      if step % run.log_every == 0 or step == run.total:
        _log(run, step, metrics)
      for hook in run.hooks:
        if hook.every and (step % hook.every == 0 or step == run.total):
          _report(run, hook, state, step)
      stopping = run.stop.reached(step)
      if step % run.checkpoint_every == 0 or step == run.total or stopping:
        _save(run, state, step)
      if stopping and step < run.total:
        return state, _finish(run, step, preemption.EXIT_STATUS)
  return state, _finish(run, run.total, 0)


def _finish(run, step, status):
  """Waits for the last save; its failure must not pass as an orderly end."""
  run.checkpoints.wait()
  if run.checkpoints.newest() != step:
    raise errors.CheckpointError(
        f'step {step} could not be saved; the newest checkpoint is step'
        f' {run.checkpoints.newest()}'
    )
  return status


def _log(run, step, metrics):
  """Writes the metrics of this very step, so that a resumed run repeats it."""
  values = {name: float(value) for name, value in metrics.items()}
  if run.rate:
    values['lr'] = run.rate(step)
  if values['skipped'] >= run.max_skipped:
    saved = run.checkpoints.newest()
    raise errors.DivergedError(
        f'loss or gradient was not finite for {int(values["skipped"])} steps up'
        f' to step {step}; those steps were left out. {run.describe(step)}. Newest'
        f' checkpoint: {saved}; a lower config.lr or a smaller config.clip may help'
    )
  run.log.scalars(step, values | run.meter.read(step))
  run.log.goodput(step, run.meter.seconds)


def _report(run, hook, state, step):
  with run.meter.paused(hook.name):
    try:
      values = hook.report(state, step)
    except OSError as error:  # a full disk: the numbers matter more
      logging.warning('no %s of step %d: %s', hook.name, step, error)
      return
    if values:
      run.log.scalars(step, values)


def _save(run, state, step):
  with run.meter.paused('save'):
    run.checkpoints.save(step, state, run.meta | {'step': step})
  run.log.note(f'step {step}: checkpoint')


def _start_trace(run, nth, trace):
  """Starts a trace before the tenth step of this start."""
  folder, count = run.profile
  if count and nth == PROFILE_AFTER:
    trace.enter_context(jax.profiler.trace(folder))


def _stop_trace(run, nth, trace, metrics):
  """Ends the trace once `count` steps are done; the end of a run does too."""
  _, count = run.profile
  if count and nth == PROFILE_AFTER + count - 1:
    jax.block_until_ready(metrics)
    trace.close()
