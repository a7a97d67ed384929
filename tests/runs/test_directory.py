"""The run directory: its configuration, its lock, its address and its room."""

import json
import logging
import os
import subprocess
import sys

import multihost
import pytest

from configs import base
from irepa_jax import errors
from irepa_jax.runs import directory
from irepa_jax.runs import lock

CONFIG = {'model': 'SiT-XL/2', 'betas': (0.9, 0.999), 'log_every': 100}


def test_the_same_configuration_is_accepted_again(tmp_path):
  for _ in range(2):
    directory.check_config(tmp_path, CONFIG)
    directory.write_config(tmp_path, CONFIG)
  assert json.loads((tmp_path / 'config.json').read_text())['betas'][1] == 0.999


def test_another_configuration_is_refused_with_its_keys(tmp_path):
  directory.write_config(tmp_path, CONFIG)
  other = {'model': 'SiT-B/2', 'betas': (0.9, 0.999), 'seed': 1}
  text = (
      "trained with log_every=100, now None; model='SiT-XL/2', now 'SiT-B/2';"
      ' seed=None, now 1. Use a new --workdir or --config.resume=force'
  )
  with pytest.raises(errors.CheckpointError, match=text):
    directory.check_config(tmp_path, other)
  assert json.loads((tmp_path / 'config.json').read_text())['log_every'] == 100


def test_free_keys_and_force_only_warn(tmp_path, caplog):
  directory.write_config(tmp_path, CONFIG)
  with caplog.at_level(logging.WARNING, 'absl'):
    changed = CONFIG | {'log_every': 10}
    directory.check_config(
        tmp_path, changed, fields={'log_every': base.free(100, 'steps')}
    )
    assert 'log_every=100, now 10' in caplog.text
    directory.check_config(tmp_path, changed | {'model': 'SiT-S/2'}, force=True)
    assert "now 'SiT-S/2'" in caplog.text
  assert json.loads((tmp_path / 'config.json').read_text())['log_every'] == 100


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"model":')
  with pytest.raises(errors.CheckpointError, match='config.json is damaged'):
    directory.check_config(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ('address', 'text'),
    [
        ('gs://bucket/run', r'gs:// needs gcsfs: pip install gcsfs'),
        ('hdfs://run', "unknown scheme 'hdfs'"),
    ],
)
def test_remote_addresses_need_their_package(address, text, monkeypatch):
  monkeypatch.setattr(directory.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(errors.UsageError, match=text):
    directory.open_(address, CONFIG)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UsageError, match='file/run is not writable'):
    directory.open_(tmp_path / 'file' / 'run', CONFIG)


def test_little_room_is_told_with_numbers(tmp_path, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    with directory.open_(tmp_path, CONFIG, state_bytes=10**15, keep=3):
      pass
    assert '1000000.0 GB and 3 are kept' in caplog.text
    caplog.clear()
    with directory.open_(tmp_path, CONFIG, state_bytes=1):
      pass
    assert not caplog.text


def test_a_refused_directory_stays_unlocked(tmp_path):
  with directory.open_(tmp_path, CONFIG):
    assert (tmp_path / 'lock.json').exists()
  directory.write_config(tmp_path, CONFIG)
  with pytest.raises(errors.CheckpointError, match='trained with'):
    directory.open_(tmp_path, {})
  assert not (tmp_path / 'lock.json').exists()


# Lock ------------------------------------------------------------------------

HOLD = """
import sys, time
from irepa_jax.runs import lock
lock.Lock(sys.argv[1], beat_s=0.05).take()
print('HELD', flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock of tmp_path."""
  with subprocess.Popen(
      [sys.executable, '-c', HOLD, tmp_path],
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'PYTHONPATH': str(multihost.ROOT)},
  ) as process:
    assert process.stdout.readline() == 'HELD\n'
    yield process
    process.kill()


def test_two_jobs_are_refused(tmp_path, holder):
  text = f'another job works on {tmp_path}: process {holder.pid} on '
  with pytest.raises(errors.CheckpointError, match=text):
    lock.Lock(tmp_path).take()
  assert lock.Lock(tmp_path).release() is None  # is not the other's to remove
  assert (tmp_path / 'lock.json').exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder, caplog):
  holder.kill()
  holder.wait()
  with caplog.at_level(logging.WARNING, 'absl'):
    mine = lock.Lock(tmp_path)
    mine.take()
  assert 'taking over' in caplog.text
  assert json.loads((tmp_path / 'lock.json').read_text())['pid'] == os.getpid()
  mine.release()
  assert not list(tmp_path.iterdir())


def test_a_process_id_that_was_given_anew_is_not_the_holder(tmp_path, holder):
  holder.kill()
  holder.wait()
  path = tmp_path / 'lock.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'pid': 1}))
  lock.Lock(tmp_path).take()


def elsewhere(path):
  """Makes a lock look as if it were of a job on another host."""
  held = json.loads(path.read_text())
  path.write_text(json.dumps(held | {'host': 'another'}))


def test_a_beating_lock_of_another_host_is_respected(tmp_path, holder):
  del holder
  found = lock.Lock(tmp_path, beat_s=0.01, patience_s=60)
  found._holder_lives = lambda held, lives=found._holder_lives: lives(
      held | {'host': 'another'}
  )
  with pytest.raises(errors.CheckpointError, match='another job works'):
    found.take()


@pytest.mark.parametrize('content', [None, ''], ids=['silent', 'empty'])
def test_a_silent_lock_of_another_host_is_taken_over(tmp_path, holder, content):
  holder.kill()
  holder.wait()
  elsewhere(tmp_path / 'lock.json')
  if content is not None:
    (tmp_path / 'lock.json').write_text(content)
  mine = lock.Lock(tmp_path, beat_s=0.01, patience_s=0.1)
  mine.take()
  mine.release()


def test_all_processes_of_a_job_are_refused_alike(tmp_path, holder):
  script = """
  from irepa_jax.runs import directory
  try:
    directory.open_(arguments['workdir'], {})
  except ValueError as error:
    result(kind=type(error).__name__, text=str(error))
  """
  lines = multihost.run(script, devices=1, workdir=str(tmp_path))
  assert lines[0] == lines[1]
  assert lines[0][0]['kind'] == 'CheckpointError'
  assert f'process {holder.pid} on' in lines[0][0]['text']


UNSEEN = """
import pathlib
from irepa_jax.runs import directory, lock
lock.SEEN_S = 0.2
folder = pathlib.Path(arguments['folder'], 'not mounted' if rank else 'run')
try:
  directory.open_(folder, {'model': 'a'})
except ValueError as error:
  result(status=error.exit_status, line=str(error))
"""


def test_a_run_directory_that_one_process_does_not_see_is_refused(tmp_path):
  for (found,) in multihost.run(UNSEEN, folder=str(tmp_path), devices=1):
    assert found['status'] == 2
    assert 'process 1 does not see what process 0 writes' in found['line']
  assert not list((tmp_path / 'run').iterdir())


# A config.json that somebody has edited ----------------------------------------


@pytest.mark.parametrize(
    'edit, message',
    [
        ({'lr': '1e-4'}, "lr is '1e-4'; it must be of the kind of 0.0001"),
        ({'steps': 3.5}, 'steps is 3.5'),
        ({'steps': True}, 'steps is True'),
        ({'fsdp': 'yes'}, "fsdp is 'yes'; it must be of the kind of true"),
        ({'encoder': None}, 'encoder is None'),
        ({'ema': 0.99}, r'ema is 0.99; it must be of the kind of \[0.9999\]'),
        ({'betas': ['0.9', 0.99]}, 'betas is'),
        ({'model': {'name': 'SiT'}}, 'model is'),
        (['lr'], 'holds a list, not the fields of a run'),
        ('{', 'is damaged'),
        (b'\xff', 'is damaged'),
    ],
)
def test_what_cannot_be_is_named(edit, message, tmp_path):
  fields = {name: field.default for name, field in base.FIELDS.items()}
  whole = fields | edit if isinstance(edit, dict) else edit
  data = edit if isinstance(edit, bytes) else json.dumps(whole).encode()
  (tmp_path / 'config.json').write_bytes(b'{' if edit == '{' else data)
  with pytest.raises(errors.CheckpointError, match=message) as caught:
    directory.read_config(tmp_path, base.FIELDS)
  assert 'config.json' in str(caught.value)


@pytest.mark.parametrize('names', [('lr',), ('preset', 'ema'), tuple(base.FIELDS)])
def test_an_absent_field_has_its_default(names, tmp_path):
  fields = {name: field.default for name, field in base.FIELDS.items()}
  kept = {k: v for k, v in fields.items() if k not in names} | {'unknown': 1}
  (tmp_path / 'config.json').write_text(json.dumps(kept))
  found = directory.read_config(tmp_path, base.FIELDS)
  assert json.loads(json.dumps(found)) == json.loads(json.dumps(fields | kept))
