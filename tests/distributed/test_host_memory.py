"""Memory that a step frees stays at hand, where the CPU is the device."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from irepa_jax.distributed import host_memory

ROOT = pathlib.Path(__file__).parents[1]
# Counts the pages of 64 MiB that are new when the block is taken once more.
TOUCHED_AGAIN = """
import resource, sys
from irepa_jax.distributed import host_memory
if sys.argv[1] == 'keep':
  host_memory.keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b'x' * 2**26
before = faults()
b'x' * 2**26
print(faults() - before)
"""


def touched_again(word, platform='cpu'):
  done = subprocess.run(
      [sys.executable, '-c', TOUCHED_AGAIN, word],
      env=os.environ | {'JAX_PLATFORMS': platform, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      timeout=120,
      check=True,
  )
  return int(done.stdout)


def test_a_block_is_kept_for_the_next():
  kept = touched_again('keep')
  assert 10 * kept < touched_again('leave')
  assert 10 * kept < touched_again('keep', platform='cuda')


@pytest.mark.parametrize(
    'platforms, plugins, libtpu, wanted',
    [
        ('cpu', ['cuda'], True, True),
        ('cuda', [], False, False),
        (None, [], False, True),
        (None, ['cuda'], False, False),
        (None, [], True, False),
    ],
)
def test_where_the_cpu_is_the_device(
    monkeypatch, platforms, plugins, libtpu, wanted
):
  found = lambda group: plugins
  monkeypatch.setattr(host_memory.importlib.metadata, 'entry_points', found)
  spec = lambda name: object() if libtpu else None
  monkeypatch.setattr(host_memory.importlib.util, 'find_spec', spec)
  before = jax.config.jax_platforms
  jax.config.update('jax_platforms', platforms)
  try:
    assert host_memory._cpu_only() == wanted
  finally:
    jax.config.update('jax_platforms', before)
