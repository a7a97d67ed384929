"""The package as `pip install .` leaves it, used from somewhere else."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import irepa_jax
from irepa_jax.tools import __main__ as command

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = (
    'LICENSE', 'README.md', 'configs', 'irepa_jax', 'launch', 'pyproject.toml',
    'setup.py',
)  # fmt: skip


@pytest.fixture(scope='session')
def site(tmp_path_factory):
  """A folder into which a copy of this checkout has been installed."""
  source = tmp_path_factory.mktemp('source')
  for name in SHIPPED:
    if (ROOT / name).is_dir():
      skipped = shutil.ignore_patterns('__pycache__')
      shutil.copytree(
          ROOT / name, source / name, symlinks=True, ignore=skipped
      )
    else:
      shutil.copy(ROOT / name, source)
  site = tmp_path_factory.mktemp('site')
  subprocess.run(
      [
          sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
          '--no-build-isolation', f'--target={site}', source,
      ],
      check=True,
  )  # fmt: skip
  return site


def run(site, *words, cwd):
  environment = os.environ | {'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
      list(map(str, words)),
      cwd=cwd,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
  )


def test_all_that_the_checkout_has_is_installed(site):
  for name in ('irepa_jax', 'configs', 'launch'):
    there = site.joinpath(*{'irepa_jax', name} - {name}, name)
    for path in (ROOT / name).rglob('*'):
      if path.is_file() and '__pycache__' not in path.parts:
        assert (there / path.relative_to(ROOT / name)).is_file(), path
  assert list(site.glob('irepa_jax-*.dist-info/licenses/LICENSE'))
  assert list(site.glob(f'irepa_jax-{irepa_jax.__version__}.dist-info'))


# What a user's own project may hold beside a config of its own.
PROJECTS = {
    'nothing': {},
    'a package': {'configs/__init__.py': '', 'configs/other.py': 'X = 3'},
    'a folder': {'configs/other.py': 'X = 3'},
    'a base of its own': {'configs/__init__.py': '', 'configs/base.py': ''},
    'a package that fails': {'configs/__init__.py': 'raise RuntimeError'},
    'a module': {'configs.py': 'X = 3'},
}
OWN = 'from configs import base\n\ndef get_config(preset="repa"):\n  '
OWN += 'c = base.get_config(preset)\n  c.seed = 7\n  return c\n'


@pytest.mark.parametrize('project', PROJECTS)
def test_an_own_config_builds_on_base_from_anywhere(site, tmp_path, project):
  for name, text in PROJECTS[project].items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  if 'configs/other.py' in PROJECTS[project]:
    (tmp_path / 'mine.py').write_text(f'from configs import other\n{OWN}')
  else:
    (tmp_path / 'mine.py').write_text(OWN)
  done = run(
      site, sys.executable, '-m', 'irepa_jax.main', '--config=mine.py:irepa',
      '--print_config', cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'seed = 7 ' in done.stdout and "preset = 'irepa' " in done.stdout


@pytest.mark.parametrize(
    'name', ['sit_b:repa', 'configs/sit_b.py:repa', 'sit_b.py:repa']
)
def test_a_shipped_config_is_found_from_anywhere(site, tmp_path, name):
  (tmp_path / 'sit_b').mkdir()  # a run directory, say
  irepa = site / 'bin/irepa'
  words = ['train', f'--config={name}', '--print_config']
  done = run(site, sys.executable, irepa, *words, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "model = 'SiT-B/2'" in done.stdout and "'repa'" in done.stdout


def test_an_installed_copy_launches_where_it_is_called(site, tmp_path):
  words = [sys.executable, site / 'bin/irepa', 'launch']
  assert run(site, *words, cwd=tmp_path).stdout.strip() == str(
      site / 'irepa_jax/launch'
  )
  done = run(
      site, *words, 'local', '--platform=cpu', '--', '--config=sit_s',
      '--print_config', cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0 and "model = 'SiT-S/2'" in done.stdout
  pod = ('--name=p', '--zone=z', '--type=v6e-8')
  done = run(site, *words, 'tpu_pod', 'run', *pod, cwd=tmp_path)
  assert done.returncode == 2 and 'is no checkout' in done.stderr


@pytest.mark.parametrize(
    'words, message',
    [
        (['trian'], "unknown command 'trian'; did you mean 'train'?"),
        (['launch', 'pod'], "no launch script 'pod'"),
        (['train', '--config=sit_q'], "config file 'sit_q' not found"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path):
  done = run(ROOT, sys.executable, '-m', 'irepa_jax.tools', *words, cwd=tmp_path)
  assert done.returncode == 2 and message in done.stderr
  assert done.stderr.count('\n') == 1


HELP = """
import os, runpy, sys
from irepa_jax.tools import __main__ as command
from irepa_jax.jobs import analyze, evaluate, probe, sweep, train  # once
for name in command.COMMANDS:
  print('COMMAND', name, flush=True)
  if not os.fork():
    sys.argv = ['irepa', name, '--help']
    command.main()
  os.wait()
"""
# Of each command a flag that only it has, or none has a flag.
FLAGS = {
    'train': '--[no]check:', 'analyze': '--points:', 'benchmark': '--steps:',
    'compare': '--metrics:', 'evaluate': '--reference:', 'plan': '--topology:',
    'prepare': '--shard_size:', 'probe': '--epochs:', 'sample': '--grid:',
    'sweep': '--finalists:', 'weights': '--[no]markdown:',
}  # fmt: skip


def test_every_command_lists_its_flags(tmp_path):
  done = run(ROOT, sys.executable, '-c', HELP, cwd=tmp_path)
  texts = dict(
      part.split('\n', 1) for part in done.stdout.split('COMMAND ')[1:]
  )
  assert set(texts) == set(command.COMMANDS) == {*FLAGS, 'devices'}
  for name, flag in FLAGS.items():
    assert f'  {flag}' in texts[name], (name, done.stderr)


def test_the_version_is_said_once():
  text = (ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {irepa_jax.__version__}\n' in text
  assert (ROOT / 'LICENSE').read_text().lstrip().startswith('Apache License')


def test_messages_name_packages_that_can_be_installed():
  for path in [*(ROOT / 'irepa_jax').rglob('*.py'), *ROOT.glob('docs/*.md')]:
    assert 'irepa_jax[' not in path.read_text(), path
