"""A stream that goes away does not end a program."""

import os
import pathlib
import pty
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
import os, resource, sys
from irepa_jax.distributed import streams
streams.outlast()
print('first', flush=True)
sys.stdin.readline()
if sys.argv[1] == 'closed':
  sys.stdout.close()
if sys.argv[1] == 'full':
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
for i in range(10_000):
  print('more', flush=i % 7 == 0)
print('still here', file=sys.stderr)
"""


@pytest.mark.parametrize('how', ['head', 'closed', 'full', 'terminal'])
def test_a_program_outlasts_its_output(how, tmp_path):
  ours, theirs = pty.openpty() if how == 'terminal' else os.pipe()
  if how == 'full':
    theirs = os.open(tmp_path / 'out', os.O_WRONLY | os.O_CREAT)
  process = subprocess.Popen(
      [sys.executable, '-c', SCRIPT, how],
      stdin=subprocess.PIPE,
      stdout=theirs,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
  )
  os.close(theirs)
  if how != 'full':
    assert os.read(ours, 100).split() == [b'first']
  os.close(ours)  # nobody reads any longer
  _, errors = process.communicate('go\n', timeout=60)
  assert (process.returncode, errors) == (0, 'still here\n')
