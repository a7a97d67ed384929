"""Signals before there is anything to save."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from irepa_jax.distributed import signals

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [
    sys.executable, '-m', 'irepa_jax.main', '--config=configs/quickstart.py',
]  # fmt: skip


def caught(pid):
  """Returns the bits of the signals that a process catches."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  (line,) = [s for s in status.splitlines() if s.startswith('SigCgt')]
  return int(line.split()[1], 16)


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='Linux')
def test_while_jax_is_imported_every_signal_asks_for_another_start(tmp_path):
  started = [
      subprocess.Popen(
          [*COMMAND, f'--workdir={tmp_path / number.name}'],
          stderr=subprocess.PIPE,
          text=True,
          cwd=ROOT,
          env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      )
      for number in signals.STOP
  ]
  for process, number in zip(started, signals.STOP, strict=True):
    while not caught(process.pid) >> signal.SIGUSR1 - 1 & 1:
      assert process.poll() is None
      time.sleep(0.002)
    process.send_signal(number)
    process.send_signal(number)
  for process, number in zip(started, signals.STOP, strict=True):
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said.startswith(f'ERROR: asked to stop ({number.name})')
    assert len(said.splitlines()) == 1
