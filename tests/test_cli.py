"""Bad input on the command line: one clear line and an exit status."""

import os
import pathlib
import subprocess
import sys

from absl import flags
import pytest

from irepa_jax import cli
from irepa_jax import errors

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = '--config=configs/quickstart.py'


def run(*args, module='irepa_jax.main'):
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
      [sys.executable, '-m', module, *args],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
  )


@pytest.mark.parametrize(
    'args, message',
    [
        ([CONFIG, '--config.sed=3'], "unknown config key 'sed' (did you mean 'seed'?)"),
        ([CONFIG, '--config.lr=fast'], 'lr'),
        ([CONFIG, '--config.betas=(0.9,)'], 'betas is (0.9,); it must be 2 numbers'),
        (['--config=configs/none.py'], "config file 'configs/none.py' not found"),
        ([CONFIG + ':irepaa'], "alignment preset 'irepaa'"),
        (['--wrokdir=x', CONFIG], 'wrokdir'),
        ([CONFIG, '--workdir='], '--workdir is required'),
        ([], '--config is required'),
        ([CONFIG, '--config.projector=cnv'], "did you mean 'conv'?"),
        ([CONFIG, '--config.guidance_low=0.9', '--config.guidance_high=0.1'], 'guidance_low'),
        ([CONFIG, '--config.align_depth=9'], 'align_depth is 9; SiT-T/2 has blocks 1 to 4'),
        ([CONFIG, '--config.model=SiT-Q/2'], "unknown model 'SiT-Q/2'"),
        ([CONFIG, '--config.encoder=dinov2-vitb'], 'dinov2-vit-b'),
        ([CONFIG, '--config.mesh_model=2'], 'needs'),
        ([CONFIG, '--config.batch_size=0'], 'batch_size'),
    ],
)
def test_usage_errors(args, message, tmp_path):
  if not any(a.startswith('--workdir') for a in args):
    args = [*args, f'--workdir={tmp_path / "run"}']
  done = run(*args)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert len([s for s in done.stderr.splitlines() if s.startswith('ERROR')]) == 1


@pytest.mark.parametrize(
    'text, message',
    [
        ('def get_config(:', 'SyntaxError: invalid syntax'),
        ('1 / 0', 'ZeroDivisionError: division by zero'),
        ('def get_config():\n  return oops', "NameError: name 'oops'"),
        ('def get_config():\n  raise RuntimeError("a\\nb")', 'RuntimeError: a b'),
    ],
)
def test_a_config_file_that_fails_is_named(text, message, tmp_path):
  (tmp_path / 'mine.py').write_text(text)
  done = run(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run')
  assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
  (line,) = [s for s in done.stderr.splitlines() if s.startswith('ERROR')]
  assert 'mine.py' in line and message in line


@pytest.mark.parametrize(
    'error, status, message',
    [
        (errors.DataError('no shards'), 3, 'ERROR: no shards\n'),
        (errors.CheckpointError('another\nrun'), 4, 'ERROR: another run\n'),
        (OSError(28, 'No space left', '/d/x'), 1, "No space left: '/d/x'\n"),
        (
            RuntimeError('x\nRESOURCE_EXHAUSTED: 9 GiB of 8.\ny'),
            1,
            'RESOURCE_EXHAUSTED: 9 GiB of 8. Less memory: --config.remat=full',
        ),
    ],
)
def test_errors_become_one_line_and_a_status(error, status, message, capsys):
  def fail(args):
    raise error

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  assert cli._guarded(fail, []) == status
  line = capsys.readouterr().err
  assert message in line and line.count('\n') == 1


def test_a_defect_keeps_its_traceback():
  def fail(args):
    raise RuntimeError('a defect')

  with pytest.raises(RuntimeError, match='a defect'):
    cli._guarded(fail, [])


def test_missing_data_is_status_3_before_anything_is_compiled(tmp_path):
  done = run(CONFIG, f'--workdir={tmp_path}/run', f'--config.data={tmp_path}/no')
  assert done.returncode == 3 and 'Traceback' not in done.stderr
  assert f'ERROR: data set {tmp_path}/no not found' in done.stderr
