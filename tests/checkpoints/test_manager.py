"""Checkpoints: what is restored is what was saved, or the step is refused."""

import contextlib
import errno
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import multihost
import numpy as np
import optax
import pytest
import tiny_state

from irepa_jax import errors
from irepa_jax.checkpoints import digest
from irepa_jax.checkpoints import manager
from irepa_jax.checkpoints import saved_step

META = tiny_state.META


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with steps 1, 2 and 3, and the digest of each."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  return folder, write(folder, [1, 2, 3])


@pytest.fixture
def run(saved, tmp_path):
  """A private copy of `saved`: (Checkpoints, {step: digest})."""
  shutil.copytree(saved[0], tmp_path / 'checkpoints')
  return manager.Checkpoints(tmp_path / 'checkpoints'), saved[1]


def write(folder, steps, devices=8, **options):
  """Saves the states of some steps; returns their digests."""
  checkpoints = manager.Checkpoints(folder, **options)
  digests, state = {}, tiny_state.create(devices)
  for step in range(1, max(steps) + 1):
    state = tiny_state.advance(state)
    if step in steps:
      digests[step] = digest.digest(state)
      assert checkpoints.save(step, state, META | {'position': step})
  checkpoints.close()
  return digests


def restored(checkpoints, devices=8, **options):
  """Restores; returns (step, digest)."""
  state, meta = checkpoints.restore(tiny_state.abstract(devices), **options)
  assert meta['position'] == int(state.step)
  return int(state.step), digest.digest(state)


def test_a_relative_directory_is_read(run, monkeypatch):
  checkpoints, digests = run
  monkeypatch.chdir(checkpoints.directory.parent)
  relative = manager.Checkpoints('checkpoints')
  assert restored(relative) == (3, digests[3])
  tree, meta = manager.restore_item('checkpoints', 'params', step=2)
  assert meta['step'] == 2 and tree


def files(folder):
  return sorted(p for p in pathlib.Path(folder).rglob('*') if p.is_file())


def largest(folder):
  return max(files(folder), key=lambda p: p.stat().st_size)


def flip(path, seed=0):
  path = pathlib.Path(path)
  data = bytearray(path.read_bytes())
  draw = random.Random(seed)
  data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  path.write_bytes(data)


def truncate(path):
  path = pathlib.Path(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {'flip': flip, 'truncate': truncate, 'delete': os.unlink}


# Saving and restoring --------------------------------------------------------


@pytest.mark.parametrize('devices', [8, 4, 1])
def test_state_comes_back_bit_for_bit_on_any_mesh(saved, devices):
  folder, digests = saved
  checkpoints = manager.Checkpoints(folder)
  step, now = restored(checkpoints, devices)
  assert (step, now) == (3, digests[3])
  state, meta = checkpoints.restore(tiny_state.abstract(devices))
  assert meta == META | {'position': 3}
  wanted = tiny_state.at(3, 1)
  assert jax.tree.structure(state) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_mesh_may_change_again_and_again(tmp_path):
  write(tmp_path, [1], devices=8)
  for step, devices in enumerate([4, 1, 2], start=2):
    checkpoints = manager.Checkpoints(tmp_path)
    state, _ = checkpoints.restore(tiny_state.abstract(devices))
    state = tiny_state.advance(state)
    checkpoints.save(step, state, META | {'position': step})
    checkpoints.close()
  assert restored(checkpoints)[1] == digest.digest(tiny_state.at(4))


def test_without_checkpoints_there_is_nothing(tmp_path):
  checkpoints = manager.Checkpoints(tmp_path / 'none')
  assert checkpoints.restore(tiny_state.abstract(8)) is None
  assert checkpoints.newest() is None


def test_donated_buffers_do_not_reach_the_files(tmp_path):
  checkpoints = manager.Checkpoints(tmp_path, keep=10)
  state = tiny_state.create(8)
  wanted = {}
  for step in range(1, 6):
    state = tiny_state.advance(state)
    wanted[step] = digest.digest(state)
    checkpoints.save(step, state, META | {'position': step})
    for _ in range(3):  # overwrites what is being saved
      state = tiny_state.advance(state)
  checkpoints.close()
  for step, digests in wanted.items():
    state, _ = checkpoints.restore(tiny_state.abstract(8), step=step)
    assert digest.digest(state) == digests


def test_old_steps_go_and_milestones_stay(tmp_path):
  write(tmp_path, range(1, 8), keep=2, keep_every=3)
  assert manager.steps(tmp_path) == [3, 6, 7]


def test_a_step_is_saved_once(tmp_path):
  checkpoints = manager.Checkpoints(tmp_path)
  state = tiny_state.at(1)
  assert checkpoints.save(1, state, META)
  assert not checkpoints.save(1, state, META)
  checkpoints.close()
  assert checkpoints.newest() == 1


def test_empty_step_folders_are_no_steps(run):
  checkpoints, digests = run
  for name in ('4/state', '9'):
    (checkpoints.directory / name).mkdir(parents=True)
  assert restored(checkpoints) == (3, digests[3])
  state, _ = checkpoints.restore(tiny_state.abstract(8))
  assert checkpoints.save(4, tiny_state.advance(state), META)
  checkpoints.close()
  assert manager.steps(checkpoints.directory) == [2, 3, 4]


# Damage ----------------------------------------------------------------------


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_weights_are_named_and_passed_over(run, damage, caplog):
  checkpoints, digests = run
  DAMAGE[damage](largest(checkpoints.directory / '3'))
  with caplog.at_level(logging.WARNING, 'absl'):
    assert restored(checkpoints) == (2, digests[2])
  (line,) = [r.getMessage() for r in caplog.records]
  assert line.startswith('step 3 damaged (') and line.endswith('; using 2')
  assert '\n' not in line
  if damage == 'flip':
    assert 'kernel' in line and 'digest mismatch' in line
  assert manager.steps(checkpoints.directory) == [1, 2]
  assert files(checkpoints.directory / 'damaged' / '3')
  state, _ = checkpoints.restore(tiny_state.abstract(8))
  assert checkpoints.save(3, tiny_state.advance(state), META | {'position': 3})
  checkpoints.close()
  assert restored(checkpoints) == (3, digests[3])


@pytest.mark.parametrize('damage', DAMAGE)
def test_no_damaged_file_is_taken_for_good(saved, tmp_path, damage):
  folder, digests = saved
  for number, file in enumerate(files(folder / '3')):
    copy = tmp_path / str(number)
    for step in ('2', '3'):
      shutil.copytree(folder / step, copy / step)
    DAMAGE[damage](copy / file.relative_to(folder))
    step, now = restored(manager.Checkpoints(copy), devices=1)
    assert now == digests[step], file


def test_several_damaged_steps_are_passed_over(run):
  checkpoints, digests = run
  flip(largest(checkpoints.directory / '3'))
  truncate(checkpoints.directory / '2' / 'meta' / 'metadata')
  assert restored(checkpoints) == (1, digests[1])
  aside = checkpoints.directory / 'damaged'
  assert manager.steps(aside) == [2, 3]
  checkpoints.save(3, tiny_state.at(3, 8), META | {'position': 3})
  checkpoints.wait()
  flip(largest(checkpoints.directory / '3'))
  assert restored(checkpoints) == (1, digests[1])
  assert {p.name for p in aside.iterdir()} == {'2', '3', '3.1'}


def test_a_run_never_starts_over_by_itself(run):
  checkpoints, _ = run
  for step in (1, 2, 3):
    flip(largest(checkpoints.directory / str(step)))
  for _ in range(2):  # nor at the second start
    with pytest.raises(errors.CheckpointError, match='every checkpoint'):
      checkpoints.restore(tiny_state.abstract(8))
  assert manager.steps(checkpoints.directory) == [1, 2, 3]  # nothing is moved


def test_no_bit_of_a_description_ends_a_restore(saved, tmp_path):
  folder, digests = saved
  for seed in range(40):
    shutil.rmtree(tmp_path, ignore_errors=True)
    for step in ('2', '3'):
      shutil.copytree(folder / step, tmp_path / step)
    flip(tmp_path / '3' / 'state' / '_METADATA', seed)
    step, now = restored(manager.Checkpoints(tmp_path), devices=1)
    assert step in (2, 3) and now == digests[step], seed


def test_a_step_asked_for_is_not_replaced_by_another(run):
  checkpoints, digests = run
  assert restored(checkpoints, step=2) == (2, digests[2])
  flip(largest(checkpoints.directory / '2'))
  with pytest.raises(errors.CheckpointError, match='step 2 damaged'):
    checkpoints.restore(tiny_state.abstract(8), step=2)
  with pytest.raises(errors.CheckpointError, match=r'no step 7 .* \[1, 2, 3\]'):
    checkpoints.restore(tiny_state.abstract(8), step=7)
  assert manager.steps(checkpoints.directory) == [1, 2, 3]


@pytest.mark.parametrize(
    'error',
    [
        PermissionError(errno.EACCES, 'denied'),
        OSError(errno.ESTALE, 'stale handle'),
        ValueError('UNAVAILABLE: storage'),
    ],
)
def test_trouble_of_the_storage_is_no_damage(run, monkeypatch, error):
  checkpoints, _ = run

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(saved_step.ocp.PyTreeCheckpointHandler, 'restore', fail)
  with pytest.raises(errors.CheckpointError, match='cannot read'):
    checkpoints.restore(tiny_state.abstract(8))
  assert manager.steps(checkpoints.directory) == [1, 2, 3]


# Another model ---------------------------------------------------------------


def other_dtype(abstract):
  half = jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.step.sharding)
  return abstract._replace(step=half)


def other_shape(abstract):
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), abstract
  )


def other_keys(abstract):
  return abstract._replace(params={'model': abstract.params['model']}, ema=())


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (other_dtype, r'step: saved int32\[\], wanted float32\[\]'),
        (other_shape, r'ema/0/.*/bias: saved float32\[128\].*and \d+ more'),
        (other_keys, 'ema/0/model/blocks_0/bias: saved float32.* wanted nothing'),
    ],
    ids=['dtype', 'shape', 'keys'],
)
def test_another_state_is_refused_and_nothing_is_moved(run, change, text):
  checkpoints, _ = run
  with pytest.raises(errors.CheckpointError, match=text) as caught:
    checkpoints.restore(change(tiny_state.abstract(8)))
  assert '\n' not in str(caught.value)
  assert manager.steps(checkpoints.directory) == [1, 2, 3]


def test_containers_without_leaves_do_not_matter(run):
  checkpoints, digests = run
  abstract = tiny_state.abstract(8)
  longer = (*abstract.opt_state, optax.EmptyState())
  state, _ = checkpoints.restore(abstract._replace(opt_state=longer))
  assert state.opt_state[-1] == optax.EmptyState()
  assert digest.digest(state) == digests[3]


# Weights alone ---------------------------------------------------------------


@pytest.mark.parametrize('name', ['ema/0', 'ema/1', 'params/model'])
def test_one_part_is_read_alone(saved, name):
  tree, meta = manager.restore_item(saved[0], name)
  now = {f'{name}/{k}': v for k, v in digest.digest(tree).items()}
  wanted = {k: v for k, v in saved[1][3].items() if k.startswith(f'{name}/')}
  assert now == wanted and now
  assert meta == META | {'position': 3, 'step': 3}


def test_a_part_is_read_onto_a_mesh(saved):
  split = lambda tree: jax.tree.map(
      lambda x: jax.sharding.NamedSharding(
          tiny_state.mesh(8),
          jax.sharding.PartitionSpec(*(['data'] if x.ndim == 2 else [])),
      ),
      tree,
  )
  tree, _ = manager.restore_item(saved[0], 'ema/1', step=2, shard=split)
  kernel = tree['model']['blocks_0']['kernel']
  assert kernel.addressable_shards[0].data.shape == (32, 128)
  np.testing.assert_array_equal(
      kernel, tiny_state.at(2).ema[1]['model']['blocks_0']['kernel']
  )


def test_a_damaged_part_is_passed_over_but_left_in_place(run):
  checkpoints, _ = run
  for seed in range(8):  # until a leaf of this part is hit
    flip(largest(checkpoints.directory / '3'), seed)
  for name in ('ema/0', 'ema/1', 'params'):
    tree, meta = manager.restore_item(checkpoints.directory, name)
    wanted = tiny_state.at(meta['step'])
    wanted = {'ema/0': wanted.ema[0], 'ema/1': wanted.ema[1]}.get(
        name, wanted.params
    )
    assert digest.digest(tree) == digest.digest(wanted)
  assert manager.steps(checkpoints.directory) == [1, 2, 3]


def test_an_unknown_part_is_refused(saved, tmp_path):
  with pytest.raises(errors.CheckpointError, match="no 'emma'; it has ema/0"):
    manager.restore_item(saved[0], 'emma')
  with pytest.raises(errors.CheckpointError, match='no checkpoint under'):
    manager.restore_item(tmp_path, 'ema/0')


# A disk that fails -----------------------------------------------------------


@contextlib.contextmanager
def full_disk():
  """No file may grow beyond a few bytes, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_save_is_told_and_training_goes_on(run, caplog, capfd):
  checkpoints, digests = run
  state, _ = checkpoints.restore(tiny_state.abstract(8))
  with full_disk():
    checkpoints.save(4, state, META)
    with caplog.at_level(logging.WARNING, 'absl'):
      checkpoints.wait()
  (line,) = [r.getMessage() for r in caplog.records]
  assert line.startswith('saving step 4 failed (') and '\n' not in line
  assert 'last good: 3' in line
  assert 'Traceback' not in capfd.readouterr().err
  names = {p.name for p in checkpoints.directory.iterdir()}
  assert names == {'1', '2', '3'}
  assert restored(checkpoints) == (3, digests[3])
  assert checkpoints.save(5, tiny_state.at(5, 8), META | {'position': 5})
  checkpoints.close()
  assert restored(checkpoints)[0] == 5


def test_failed_saves_in_a_row_end_the_run(run):
  path = run[0].directory
  checkpoints = manager.Checkpoints(path, max_failed_saves=2)
  state, _ = checkpoints.restore(tiny_state.abstract(8))
  with full_disk():
    checkpoints.save(4, state, META)
    checkpoints.wait()
    checkpoints.save(5, state, META)
    with pytest.raises(errors.CheckpointError, match='2 failures in a row'):
      checkpoints.wait()
  assert manager.steps(path) == [1, 2, 3]


# Real kills, real processes --------------------------------------------------

TRAIN = '''
from irepa_jax.checkpoints import manager, digest
import tiny_state
checkpoints = manager.Checkpoints(arguments['folder'], keep=2)
found = checkpoints.restore(tiny_state.abstract(jax.devices()))
state = found[0] if found else tiny_state.create(jax.devices())
first = int(state.step)
for step in range(first + 1, arguments['steps'] + 1):
  state = tiny_state.advance(state)
  print(f'STEP {step - first}.', flush=True)
  checkpoints.save(step, state, tiny_state.META | {'position': step})
checkpoints.close()
result(first=first, digest=digest.digest(state))
'''


def test_kills_at_any_moment_leave_a_whole_step(tmp_path):
  draw = random.Random(0)
  reached = []
  for _ in range(4):
    with multihost.Job(
        TRAIN, processes=1, devices=2, folder=str(tmp_path), steps=10_000
    ) as job:
      job.wait_for(f'STEP {draw.randrange(1, 4)}.')  # before it is saved
      time.sleep(draw.uniform(0.0, 0.1))
      job.send(signal.SIGKILL)
      job.codes()
    found = manager.Checkpoints(tmp_path).restore(tiny_state.abstract(1))
    state = found[0] if found else tiny_state.create(1)
    reached.append(int(state.step))
    assert digest.digest(state) == digest.digest(tiny_state.at(reached[-1]))
    assert not (tmp_path / 'damaged').exists()
  assert reached == sorted(reached) and reached[-1] > 0
  last = reached[-1] + 3
  ((line,),) = multihost.run(
      TRAIN, processes=1, devices=2, folder=str(tmp_path), steps=last
  )
  assert line == {
      'first': reached[-1],
      'digest': digest.digest(tiny_state.at(last)),
  }


def test_process_count_may_change(tmp_path):
  folder = str(tmp_path / 'checkpoints')
  two = dict(processes=2, devices=4, folder=folder)
  lines = multihost.run(TRAIN, **two, steps=2)
  wanted = digest.digest(tiny_state.at(2))
  assert lines == [[{'first': 0, 'digest': wanted}]] * 2
  checkpoints = manager.Checkpoints(folder)
  state, _ = checkpoints.restore(tiny_state.abstract(8))
  state = tiny_state.advance(state)
  checkpoints.save(3, state, META | {'position': 3})
  state = tiny_state.advance(state)
  checkpoints.save(4, state, META | {'position': 4})
  checkpoints.close()
  flip(largest(tmp_path / 'checkpoints' / '4'))
  lines = multihost.run(TRAIN, **two, steps=5)
  wanted = digest.digest(tiny_state.at(5))
  assert lines == [[{'first': 3, 'digest': wanted}]] * 2
  assert manager.steps(tmp_path / 'checkpoints' / 'damaged') == [4]


DISAGREE = '''
from irepa_jax.checkpoints import manager, saved_step
import tiny_state
whole = saved_step.read_state
def read(folder, abstract):
  if rank == 1 and folder.name == arguments['bad']:
    raise saved_step.Damaged('only here')
  return whole(folder, abstract)
saved_step.read_state = read
checkpoints = manager.Checkpoints(arguments['folder'])
state, _ = checkpoints.restore(tiny_state.abstract(jax.devices()))
result(step=int(state.step))
part, _ = manager.restore_item(arguments['folder'], 'ema/0')
with open(arguments['folder'] + '/2/meta/metadata', 'a' if rank else 'r') as f:
  f.write('x') if rank else None
try:
  checkpoints.restore(tiny_state.abstract(jax.devices())._replace(ema=()))
except ValueError as error:
  result(error=type(error).__name__)
'''


UNSEEN = '''
import pathlib
from irepa_jax.checkpoints import manager, saved_step
import tiny_state
manager.SEEN_S = 0
folder = pathlib.Path(arguments['folder'])
for here, missing in (('checkpoints', 'elsewhere'), ('one', 'two')):
  mine = folder / (missing if rank else here)
  try:
    manager.Checkpoints(mine).restore(tiny_state.abstract(jax.devices()))
  except ValueError as error:
    result(line=str(error))
'''


def test_what_one_process_does_not_see_is_no_damage(run, tmp_path):
  folder = pathlib.Path(run[0].directory)
  for name in ('one', 'two'):
    shutil.copytree(folder, tmp_path / name)
  os.unlink(largest(tmp_path / 'two' / '3'))
  before = files(tmp_path)
  lines = multihost.run(UNSEEN, folder=str(tmp_path), devices=1)
  assert files(tmp_path) == before
  for unmounted, incomplete in ([x['line'] for x in each] for each in lines):
    assert 'process 1 nothing, process 0 1 2 3.' in unmounted
    assert 'do not see the same files' in incomplete
  assert manager.steps(folder) == [1, 2, 3]


def test_processes_agree_on_the_step(run):
  checkpoints, _ = run
  lines = multihost.run(
      DISAGREE, folder=str(checkpoints.directory), bad='3', devices=1
  )
  assert [line[0] for line in lines] == [{'step': 2}] * 2
  assert lines[0][1] == lines[1][1] == {'error': 'CheckpointError'}
