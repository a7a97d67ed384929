"""Starts several real JAX processes on this machine, for tests.

  lines = multihost.run('''
  x = multihost_utils.process_allgather(jnp.ones(()))
  result(total=float(x.sum()))
  ''', processes=2, devices=4)

The script runs in every process after jax.distributed has started, with these
names: jax, jnp, np, rank, count, arguments, result(**what JSON can hold).
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

ROOT = pathlib.Path(__file__).parents[1]
CACHE = pathlib.Path(tempfile.gettempdir()) / 'irepa_jax_test_cache'
PRELUDE = '''
import json, os, sys
rank, count, devices, address = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
arguments = json.loads(sys.argv[5])
import jax
jax.config.update('jax_num_cpu_devices', devices)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_default_matmul_precision', 'highest')
if count > 1:
  from irepa_jax.distributed import start
  start.join(address, count, rank, heartbeat_timeout=20)
import jax.numpy as jnp
import numpy as np
def result(**values):
  print('RESULT ' + json.dumps(values), flush=True)
'''


class Job:
  """Processes of one job; use as a context so that none survives the test."""

  def __init__(self, script, *, processes=2, devices=4, **arguments):
    """Starts `processes` interpreters of `devices` simulated devices each."""
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix='multihost'))
    file = self.folder / 'worker.py'
    file.write_text(PRELUDE + textwrap.dedent(script))
    address = f'127.0.0.1:{free_port()}'
    self.logs = [self.folder / f'{rank}.log' for rank in range(processes)]
    self.processes = [
        _start(file, log, rank, processes, devices, address, arguments)
        for rank, log in enumerate(self.logs)
    ]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()

  def output(self, rank):
    """Returns what a process has printed so far, errors included."""
    return self.logs[rank].read_text(errors='replace')

  def wait_for(self, text, rank=0, timeout=120):
    """Waits until a process has printed `text`."""
    end = time.monotonic() + timeout
    while text not in self.output(rank):
      assert time.monotonic() < end, f'no {text!r} in:\n{self.output(rank)}'
      code = self.processes[rank].poll()
      assert code is None or text in self.output(rank), (
          f'process {rank} ended with {code}:\n{self.output(rank)}'
      )
      time.sleep(0.01)

  def send(self, number, rank=0):
    """Sends a signal to one process."""
    self.processes[rank].send_signal(number)

  def codes(self, timeout=120):
    """Waits for the end; returns the exit statuses."""
    end = time.monotonic() + timeout
    for rank, process in enumerate(self.processes):
      try:
        process.wait(max(end - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        raise AssertionError(
            f'process {rank} still runs:\n{self.output(rank)}'
        ) from None
    return [process.returncode for process in self.processes]

  def results(self, timeout=120):
    """Waits for the end; returns the result(...) lines of each process."""
    codes = self.codes(timeout)
    printed = '\n'.join(self.output(r)[-3000:] for r in range(len(codes)))
    assert not any(codes), f'exit statuses {codes}:\n{printed}'
    return [self.lines(rank) for rank in range(len(codes))]

  def lines(self, rank):
    """Returns the result(...) lines that a process has printed so far."""
    lines = self.output(rank).splitlines()
    return [json.loads(s[7:]) for s in lines if s.startswith('RESULT ')]


def run(script, *, processes=2, devices=4, timeout=120, **arguments):
  """Runs a script to its end; returns the result(...) lines per process."""
  with Job(script, processes=processes, devices=devices, **arguments) as job:
    return job.results(timeout)


def _start(file, log, rank, count, devices, address, arguments):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  environment |= {
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(CACHE),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'OMP_NUM_THREADS': '1',
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
      'PYTHONUNBUFFERED': '1',
  }
  words = [rank, count, devices, address, json.dumps(arguments)]
  with log.open('w') as output:
    return subprocess.Popen(
        [sys.executable, file, *map(str, words)],
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )


def free_port():
  """Returns a port that nobody listens at."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]
