"""A stream that goes away does not end a program."""

import pathlib
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


@pytest.mark.parametrize('how', ['head', 'closed', 'full'])
def test_a_program_outlasts_its_output(how, tmp_path):
  with (tmp_path / 'out').open('w') as file:
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, how],
        stdin=subprocess.PIPE,
        stdout=file if how == 'full' else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
  if how != 'full':
    assert process.stdout.readline() == 'first\n'
    process.stdout.close()
  process.stdout = None
  _, errors = process.communicate('go\n', timeout=60)
  assert (process.returncode, errors) == (0, 'still here\n')
