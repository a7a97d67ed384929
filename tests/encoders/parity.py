"""Prints how far tokens are from those of the official code, as measured.

  python tests/encoders/parity.py

Runs the tests of this folder that compare with a stored or a live oracle, and
writes one line for each comparison: the largest absolute error, and the largest
value of the oracle. docs/encoders.md has the figures by family.
"""

import pathlib
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent
CHOSEN = (
    'tokens_are or give_their_tokens or variants or tokens_of or patch or'
    ' photo or as_scikit'
)


class Recorder:
  """A plugin that keeps the arrays of every comparison."""

  def __init__(self):
    self.lines = []

  @pytest.hookimpl(hookwrapper=True)
  def pytest_runtest_call(self, item):
    check = np.testing.assert_allclose

    def compare(found, wanted, *args, **settings):
      check(found, wanted, *args, **settings)
      a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
      error, scale = np.abs(a - b).max(), np.abs(b).max()
      self.lines.append(f'{error:8.1e} of {scale:8.3g}  {item.nodeid}')

    np.testing.assert_allclose = compare
    yield
    np.testing.assert_allclose = check


def main():
  recorder = Recorder()
  status = pytest.main(['-q', '-n', '0', '-k', CHOSEN, str(FOLDER)], [recorder])
  print('\n'.join(recorder.lines))
  return status


if __name__ == '__main__':
  sys.exit(main())
