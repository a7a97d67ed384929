"""The compiled step of a small model stays within its budget on a TPU slice."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parents[1]
LEEWAY = 0.05  # of memory and cycles; python tests/budget.py writes new figures

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'),
    reason='needs the compiler of TPUs: pip install libtpu (Linux, x86)',
)


@pytest.fixture(scope='module')
def compiled():
  """Returns the figures of this checkout and what the compiler complained of."""
  done = subprocess.run(
      [sys.executable, str(TESTS / 'budget.py'), '--print'],
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(TESTS.parent)},
      capture_output=True, text=True, check=True,
  )  # fmt: skip
  return json.loads(done.stdout), done.stderr


@pytest.fixture(scope='module')
def budget(compiled):
  found = json.loads((TESTS / 'golden' / 'budget.json').read_text())
  here = compiled[0]['compiled_with']
  if found['compiled_with'] != here:
    pytest.skip(
        f'written with {found["compiled_with"]}, here is {here}: python'
        ' tests/budget.py'
    )
  return found


def test_weights_are_gathered_in_the_compute_dtype_only(compiled):
  gathers = {k for k in compiled[0]['collectives'] if k.startswith('all-gather')}
  assert gathers == {'all-gather bf16'}


def test_nothing_is_rematerialised_involuntarily(compiled):
  assert 'nvoluntary full rematerialization' not in compiled[1]


def test_collectives_are_the_expected_ones(compiled, budget):
  assert compiled[0]['collectives'] == budget['collectives']


@pytest.mark.parametrize('figure', ['bytes', 'cycles'])
def test_memory_and_estimated_cycles(compiled, budget, figure):
  assert compiled[0][figure] == pytest.approx(budget[figure], rel=LEEWAY)
