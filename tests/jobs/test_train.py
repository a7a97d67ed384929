"""A run is the same run whatever happens to it: kills, damage, other meshes.

The comparisons are with one run that nothing happens to, as real commands on
eight simulated devices; all of them on the same machine, because another number
of cores may round differently.
"""

import json
import pathlib
import random
import shutil
import signal
import time

import golden_files
import jax
import numpy as np
import pytest
import real_runs

from configs import quickstart
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.jobs import sample
from irepa_jax.jobs import train

STEPS = 32
PARTS = ('params', 'opt_state', 'ema', 'step')


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  return real_runs.data_set(tmp_path_factory.mktemp('digits') / 'data')


@pytest.fixture(scope='session')
def straight(tmp_path_factory, data):
  """The run that nothing happens to; it keeps every eighth checkpoint."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  real_runs.train(workdir, data=data, steps=STEPS, keep=1, keep_every=8)
  return workdir


def state(workdir, step):
  """Returns the arrays of a checkpoint by path."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  found = {}
  for part in PARTS[:-1]:
    tree, meta = manager.restore_item(folder, part, step=step)
    assert meta['step'] == step
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[part + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def assert_same_state(one, other, step=STEPS):
  one, other = state(one, step), state(other, step)
  assert one.keys() == other.keys() and len(one) > 200
  for name, array in one.items():
    # Bits, so that zeros of either sign differ.
    assert array.tobytes() == other[name].tobytes(), name


def damage(workdir, how, number):
  """Damages the largest file of the newest checkpoint; returns its step."""
  step = real_runs.steps(workdir)[-1]
  folder = pathlib.Path(workdir) / 'checkpoints' / str(step) / 'state'
  path = max(folder.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
  content = bytearray(path.read_bytes())
  if how == 'truncate':
    # Not in the last 3 %: an index that the merge has replaced, never read.
    content = content[: int(len(content) * 0.95 * number)]
  else:  # in the middle, among the weights
    content[int(len(content) * (0.25 + number / 2))] ^= 1 << int(8 * number)
  path.write_bytes(content)
  return step


def test_a_run_that_is_killed_and_damaged_ends_as_one_that_is_not(
    straight, data, tmp_path
):
  seed = time.time_ns()
  print('seed of the moments', seed)  # shown when the test fails
  dice = random.Random(seed)
  # Grids and scores as well: they must change nothing either.
  reports = dict(
      sample_every=10,
      sample_count=10,
      sample_steps=2,
      eval_every=16,
      eval_count=20,
  )
  workdir = tmp_path / 'run'
  start = lambda: real_runs.Started(workdir, data=data, steps=STEPS, **reports)

  with start() as run:  # killed at some moment
    run.wait_for_step(dice.randint(4, 8))
    time.sleep(dice.uniform(0, 0.1))
    run.send(signal.SIGKILL)
    assert run.codes() == [-signal.SIGKILL]

  with start() as run:  # killed during a save
    found = (workdir / 'checkpoints').glob
    run.wait_for_step(13)
    run.wait_for(lambda: any(found('16.orbax-checkpoint-tmp')))
    time.sleep(dice.uniform(0, 0.05))
    run.send(signal.SIGKILL)
    run.codes()

  truncated = damage(workdir, 'truncate', dice.random())
  with start() as run:  # asked to stop
    run.wait_for_step(dice.randint(17, 22))
    run.send(signal.SIGTERM)
    assert run.codes() == [75], run.output()
    assert f'step {truncated} damaged' in run.output()

  flipped = damage(workdir, 'flip', dice.random())
  with start() as run:
    assert run.codes() == [0], run.output()
    assert f'step {flipped} damaged' in run.output()
    assert 'digest mismatch' in run.output()

  assert_same_state(workdir, straight)
  assert real_runs.losses(workdir) == real_runs.losses(straight)
  assert sorted(real_runs.losses(workdir)) == list(range(1, STEPS + 1))
  moved = (workdir / 'checkpoints' / 'damaged').iterdir()
  assert {p.name for p in moved} == {str(truncated), str(flipped)}
  grids = {p.name for p in (workdir / 'samples').iterdir()}
  assert {f'{step:07d}.png' for step in (10, 20, 30, 32)} <= grids
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  scored = [s['step'] for s in map(json.loads, lines) if 'eval/accuracy' in s]
  assert scored == [16, 32]


def test_other_numbers_of_processes_continue_one_run(straight, data, tmp_path):
  """Rows in another order meet other noise: that changes a loss by percents."""
  workdir = tmp_path / 'run'
  shutil.copytree(straight, workdir)
  for step in real_runs.steps(workdir):
    if step > 8:
      shutil.rmtree(workdir / 'checkpoints' / str(step))

  settings = dict(data=data, keep=1, keep_every=8)
  with real_runs.Started(workdir, processes=2, steps=STEPS, **settings) as run:
    run.wait_for_step(10)
    run.send(signal.SIGTERM, rank=1)  # both save the same step
    assert run.codes() == [75, 75], run.output()
  first = real_runs.steps(workdir)[-1]
  assert 10 <= first < STEPS - 8
  with real_runs.Started(workdir, processes=4, steps=STEPS, **settings) as run:
    run.wait_for_step(first + 2)
    run.send(signal.SIGKILL, rank=3)  # a host is lost
    assert run.codes() == [75, 75, 75, -signal.SIGKILL], run.output()
    (line,) = [s for s in run.output(1).splitlines() if 'ERROR' in s]
    assert line.startswith('ERROR: process 3 on ') and 'is gone' in line
  # The same command on what is left: half of the devices.
  last = min(max(real_runs.losses(workdir)) + 2, STEPS)
  real_runs.train(workdir, processes=2, devices=4, steps=last, **settings)
  real_runs.train(workdir, processes=1, steps=last + 1, **settings)

  seen, wanted = real_runs.losses(workdir), real_runs.losses(straight)
  assert sorted(seen) == list(range(1, last + 2))
  for step, values in seen.items():
    for name, value in values.items():
      # The sums over eight or four devices are taken in another order:
      # float32 rounding, carried on for some steps.
      np.testing.assert_allclose(
          value,
          wanted[step][name],
          rtol=1e-6,
          atol=1e-6,
          err_msg=f'{step} {name}',
      )


# Starts that are refused or have nothing to do, in this process ---------------


@pytest.fixture(autouse=True)
def fields(data):
  """Returns the configuration of `straight` with changes."""

  def make(**changes):
    config = quickstart.get_config()
    settings = real_runs.FIELDS | dict(data=str(data), steps=STEPS)
    config.update(settings | dict(keep=1, keep_every=8) | changes)
    return config

  return make


@pytest.fixture
def finished(straight, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(straight, workdir)
  return workdir


def test_a_complete_run_has_nothing_to_do(finished, fields, capsys):
  assert train.run(fields(), finished) == 0
  assert f'run already complete ({STEPS}/{STEPS})' in capsys.readouterr().out
  assert train.run(fields(steps=STEPS - 9), finished) == 0


def test_another_configuration_is_refused_with_the_keys(finished, fields):
  before = (finished / 'config.json').read_text()
  with pytest.raises(
      errors.CheckpointError,
      match=r'align_depth=2, now 3; lr=.*, now 0\.5\. Use a new --workdir',
  ):
    train.run(fields(lr=0.5, align_depth=3, keep=5), finished)
  assert (finished / 'config.json').read_text() == before


def test_a_refusal_is_one_line_and_status_4(finished, data):
  with real_runs.Started(finished, data=data, steps=STEPS, lr=0.5) as run:
    assert run.codes() == [4]
    assert 'Traceback' not in run.output()
    (line,) = [s for s in run.output().splitlines() if s.startswith('ERROR')]
    assert 'lr=' in line and 'now 0.5' in line


def test_a_loss_of_nan_names_the_records(data, fields, tmp_path):
  workdir = tmp_path / 'run'
  config = fields(data=str(data), adam_eps=0.0, lr=1e30, max_skipped=2)
  with pytest.raises(errors.DivergedError, match='listed in .*batch_of_step_'):
    train.run(config, workdir)
  (listed,) = workdir.glob('batch_of_step_*.txt')
  lines = listed.read_text().splitlines()
  assert len(lines) == config.batch_size
  assert all('.array_record record ' in line for line in lines)


def test_another_configuration_can_be_forced(finished, fields):
  assert train.run(fields(lr=0.5, resume='force'), finished) == 0


def contents(folder):
  """Returns the bytes of all files, or None where there is no folder."""
  files = (p for p in folder.rglob('*') if p.is_file())
  return {p: p.read_bytes() for p in files} if folder.exists() else None


@pytest.mark.parametrize(
    'changes',
    [{'sampler': 'euler', 'guidance': 2.0}, {'keep': 9, 'data': 'digits'}, {}],
)
def test_a_check_changes_nothing(finished, fields, changes, capsys):
  for workdir in (finished, finished.parent / 'none' / 'new'):
    before = contents(workdir)
    assert train.run(fields(**changes), workdir, check_only=True) == 0
    assert contents(workdir) == before
    assert capsys.readouterr().out.endswith('data set, weights\n')


def test_a_start_with_nothing_to_do_keeps_the_configuration(finished, fields):
  before = (finished / 'config.json').read_text()
  assert train.run(fields(sampler='euler', steps=STEPS - 1), finished) == 0
  with pytest.raises(errors.DataError):
    train.run(fields(guidance=2.0, data='nowhere'), finished)
  assert (finished / 'config.json').read_text() == before


@pytest.mark.parametrize('place', ['a file', '/dev/null', '/proc'])
def test_a_check_finds_where_no_run_can_be(fields, tmp_path, place):
  (tmp_path / 'a file').touch()
  with pytest.raises(errors.UsageError, match='cannot be written'):
    train.run(fields(), tmp_path / place / 'run', check_only=True)


def test_force_does_not_load_another_model(finished, fields):
  with pytest.raises(
      errors.CheckpointError, match='belongs to another model or optimiser'
  ):
    train.run(fields(ema=(0.9, 0.99), resume='force'), finished)
  assert real_runs.steps(finished)  # nothing was set aside


def test_free_fields_may_change(finished, fields):
  config = fields(
      log_every=7, keep=2, fsdp=False, remat='full', scan_layers=True
  )
  assert train.run(config, finished) == 0


def test_a_run_of_version_0_1_goes_on_and_is_sampled(tmp_path, monkeypatch):
  """Two steps were trained by the code of 0.1, and there 3 and 4 as well."""
  golden_files.unpack('run_of_version_0_1', tmp_path)
  monkeypatch.chdir(tmp_path)
  config = quickstart.get_config('none')
  config.update(
      data='data', batch_size=16, steps=4, log_every=1, checkpoint_every=1,
      keep=1, eval_every=0, sample_every=0,
  )  # fmt: skip
  assert train.run(config, 'run') == 0
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['loss'] for line in lines]
  there = [2.06543589, 2.04712630, 1.97802365, 1.92913461]
  np.testing.assert_allclose(losses, there, rtol=1e-5)  # sums in other orders
  assert sample.sample('run', out='s', count=8, sample_steps=2) == 0
  assert np.load('s.npz')['arr_0'].shape == (8, 16, 16, 3)


def test_another_data_set_is_refused(finished, fields, tmp_path):
  other = real_runs.data_set(tmp_path / 'other', max_images=real_runs.COUNT - 1)
  with pytest.raises(errors.CheckpointError, match='another data set'):
    train.run(fields(data=str(other)), finished)


def test_the_same_data_set_may_lie_elsewhere(finished, fields, data, tmp_path):
  shutil.copytree(data, tmp_path / 'moved')
  assert train.run(fields(data=str(tmp_path / 'moved')), finished) == 0


def test_a_start_without_a_checkpoint_binds_to_nothing(fields, tmp_path):
  workdir = tmp_path / 'run'
  with pytest.raises(errors.DataError):
    train.run(fields(data=str(tmp_path / 'none'), lr=0.5), workdir)
  assert train.run(fields(), workdir, check_only=True) == 0


def test_a_relative_run_directory(fields, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert train.run(fields(steps=2), 'runs/x') == 0
  assert real_runs.steps('runs/x') == [2]
  assert train.run(fields(steps=3, sampler='euler'), 'runs/x') == 0
  told = json.loads((tmp_path / 'runs/x/config.json').read_text())
  assert told['sampler'] == 'euler'  # it went on, so it is of these fields
  assert 'steps 2 to 3' in capsys.readouterr().out


def test_a_second_job_in_the_directory_is_refused(fields, data, tmp_path):
  workdir = tmp_path / 'run'
  with real_runs.Started(workdir, data=data, steps=STEPS) as run:
    run.wait_for(lambda: (workdir / 'lock.json').exists())
    with pytest.raises(errors.CheckpointError, match='another job works on'):
      train.run(fields(), workdir)
