"""What happens between steps, with a step that only counts."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import pytest

from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.train import loop
from irepa_jax.train import state as states


class Checkpoints:
  """Remembers what was saved; steps in `failing` do not get to the disk."""

  def __init__(self, failing=()):
    self.steps, self.values, self._failing = [], {}, failing

  def save(self, step, state, meta):
    assert meta == {'seed': 0, 'step': step} and int(state.step) == step
    self.values[step] = float(state.params)
    if step not in self._failing:
      self.steps.append(step)

  def wait(self):
    pass

  def newest(self):
    return self.steps[-1] if self.steps else None


class Log:

  def __init__(self):
    self.lines = []

  def scalars(self, step, values):
    self.lines.append((step, values))

  def note(self, text):
    pass

  def goodput(self, step, seconds):
    pass


class Meter:
  seconds = {'step': 0.0}

  def start(self, step):
    pass

  def stepped(self, step):
    pass

  @contextlib.contextmanager
  def waiting(self):
    yield

  @contextlib.contextmanager
  def paused(self, name):
    yield

  def read(self, step):
    return {}


class Stop:
  """Asks to stop from one step on."""

  def __init__(self, at=None):
    self._at = at

  def alive(self):
    pass

  def reached(self, step):
    return self._at is not None and step >= self._at


@jax.jit
def add(state, batch, frozen, key):
  """Adds the batch to the only parameter; a batch below zero counts as NaN."""
  del frozen, key
  skipped = jnp.where(batch < 0, state.skipped + 1, 0)
  state = state._replace(
      step=state.step + 1, params=state.params + batch, skipped=skipped
  )
  return state, {'loss': state.params, 'skipped': skipped}


def start(step=0):
  zero = jnp.zeros((), jnp.int32)
  return states.TrainState(zero + step, jnp.zeros(()), (), (), zero)


def run(*, first=0, step=add, batches=None, stop=None, checkpoints=None, **changes):
  """Runs the loop; returns (Run, state, status)."""
  settings = dict(total=7, log_every=3, checkpoint_every=4) | changes
  made = loop.Run(
      step=step,
      batches=batches or map(jnp.float32, itertools.count(first + 1)),
      frozen=(),
      key=None,
      checkpoints=checkpoints or Checkpoints(),
      meta={'seed': 0},
      describe='batch {}'.format,
      log=Log(),
      meter=Meter(),
      stop=Stop(stop),
      **settings,
  )
  return made, *loop.train(made, start(first))


def test_logs_and_saves_every_so_often_and_at_the_end():
  made, state, status = run()
  assert status == 0 and int(state.step) == 7
  assert float(state.params) == sum(range(1, 8))
  assert [step for step, _ in made.log.lines] == [3, 6, 7]
  assert made.checkpoints.steps == [4, 7]


def test_goes_on_from_the_step_of_the_state():
  made, state, _ = run(first=5)
  assert int(state.step) == 7 and float(state.params) == 6 + 7
  assert made.checkpoints.values == {7: 13.0}


def test_a_log_line_is_of_its_own_step():
  made, _, _ = run()
  assert [values['loss'] for _, values in made.log.lines] == [6.0, 21.0, 28.0]


def test_hooks_report_every_so_often_and_at_the_end():
  seen = []

  def report(state, step):
    seen.append((step, float(state.params)))
    return {'eval/score': 1.0} if step == 6 else {}

  made, _, _ = run(
      hooks=(loop.Hook('eval', 3, report), loop.Hook('never', 0, None))
  )
  assert seen == [(3, 6.0), (6, 21.0), (7, 28.0)]
  assert (6, {'eval/score': 1.0}) in made.log.lines


def test_a_preempted_run_saves_that_step_and_asks_to_be_started_again():
  made, state, status = run(stop=5)
  assert status == preemption.EXIT_STATUS == 75
  assert int(state.step) == 5 and made.checkpoints.steps == [4, 5]


def test_a_run_preempted_in_its_last_step_is_complete():
  made, _, status = run(stop=7)
  assert status == 0 and made.checkpoints.steps == [4, 7]


@pytest.mark.parametrize('stop', [None, 5])
def test_an_end_that_could_not_be_saved_is_no_orderly_end(stop):
  last = stop or 7
  with pytest.raises(errors.CheckpointError, match=f'step {last} could not'):
    run(stop=stop, checkpoints=Checkpoints(failing=[last]))


def test_a_loss_that_stays_nan_ends_the_run():
  batches = map(jnp.float32, [1, 2, -1, -1, -1, -1, 5])
  with pytest.raises(
      errors.DivergedError,
      match='for 4 steps up to step 6;.* batch 6. Newest checkpoint: 4;',
  ):
    run(batches=batches, max_skipped=4)


def test_a_single_nan_does_not_end_the_run():
  batches = map(jnp.float32, [1, 2, -1, 4, 5, 6, 7])
  made, _, status = run(batches=batches, max_skipped=2)
  assert status == 0 and made.log.lines[0][1]['skipped'] == 1


def test_the_host_does_not_run_far_ahead_of_the_devices():
  begun, done = itertools.count(1), []

  class Metric:
    """Done when somebody waits for it, as far as this test can see."""

    def __init__(self):
      self.step = next(begun)

    def block_until_ready(self):
      done.append(self.step)

    def __float__(self):
      return 0.0

  def step(state, batch, frozen, key):
    assert int(state.step) - max(done, default=0) <= loop.AHEAD
    state, metrics = add(state, batch, frozen, key)
    return state, {'loss': Metric(), 'skipped': metrics['skipped']}

  run(step=step, total=20, log_every=100, checkpoint_every=100)
  assert done == list(range(1, 21 - loop.AHEAD))


@pytest.mark.parametrize('total', [12, 20])
def test_a_trace_is_written_even_if_the_run_ends_in_it(tmp_path, total):
  run(total=total, profile=(str(tmp_path), 5))
  assert list(tmp_path.rglob('*.xplane.pb'))
  with jax.profiler.trace(str(tmp_path / 'next')):  # none is left open
    pass
