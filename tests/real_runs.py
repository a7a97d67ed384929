"""Starts real training commands on a tiny data set, for tests.

  with real_runs.Started(workdir, data=folder, steps=20) as run:
    run.wait_for_step(7)
    run.send(signal.SIGKILL)
  assert run.codes() == [-9]
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import multihost

from irepa_jax.jobs import prepare

DEVICES = 8  # of all processes together
TIMEOUT_S = 300
COUNT = 96  # records of the data set
# The quickstart, made small; single tests override it.
FIELDS = dict(
    batch_size=16,
    fsdp=True,
    log_every=1,
    checkpoint_every=4,
    sample_every=0,
    eval_every=0,
)
# Compiling takes a fifth of the time; the options change no mathematics.
FAST_COMPILE = {
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': (
        '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true'
    ),
}
# What a step computes; the rest of a line of metrics.jsonl is about time.
COMPUTED = ('loss', 'diffusion', 'alignment', 'grad_norm', 'skipped')


def data_set(folder, **changes):
  """Prepares some of the digits; returns the folder."""
  settings = dict(
      image_size=16,
      autoencoder='haar',
      image_format='png',
      max_images=COUNT,
      shard_size=COUNT // 2,
      say=lambda line: None,
  )
  prepare.prepare('digits', folder, **(settings | changes))
  return folder


def command(workdir, *flags, recipe='quickstart', preset='irepa', **fields):
  """Returns the words of the command that trains in `workdir`."""
  overrides = [f'--config.{k}={v}' for k, v in (FIELDS | fields).items()]
  return [
      sys.executable,
      '-m',
      'irepa_jax.main',
      f'--config=configs/{recipe}.py:{preset}',
      f'--workdir={workdir}',
      *overrides,
      *flags,
  ]


class Started:
  """One command in one or several processes; use as a context."""

  def __init__(self, workdir, *flags, processes=1, devices=DEVICES, **fields):
    """Starts it on `devices` in all; its output goes to WORKDIR.<number>.log."""
    self.workdir = pathlib.Path(workdir)
    words = command(workdir, *flags, **fields)
    port = multihost.free_port()
    self.logs = [self._log() for _ in range(processes)]
    self.processes = [
        _start(words, log, rank, processes, port, devices // processes)
        for rank, log in enumerate(self.logs)
    ]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()

  def output(self, rank=0):
    """Returns what a process has printed so far, errors included."""
    return self.logs[rank].read_text(errors='replace')

  def wait_for(self, happened):
    """Waits until happened() is true; not if the run has ended before."""
    end = time.monotonic() + TIMEOUT_S
    while not happened():
      assert time.monotonic() < end and self.processes[0].poll() is None, (
          f'status {self.processes[0].poll()}:\n{self.output()[-4000:]}'
      )
      time.sleep(0.002)

  def wait_for_step(self, step):
    """Waits until the metrics of a step are written, by this start."""
    self.wait_for(lambda: '; steps ' in self.output())
    self.wait_for(lambda: max(losses(self.workdir), default=0) >= step)

  def send(self, number, rank=0):
    """Sends a signal to one process."""
    self.processes[rank].send_signal(number)

  def codes(self):
    """Waits for the end; returns the exit statuses."""
    for rank, process in enumerate(self.processes):
      try:
        process.wait(TIMEOUT_S)
      except subprocess.TimeoutExpired:
        raise AssertionError(f'hangs:\n{self.output(rank)[-4000:]}') from None
    return [process.returncode for process in self.processes]

  def _log(self):
    folder = self.workdir.parent
    number = len(list(folder.glob(f'{self.workdir.name}.*.log')))
    path = folder / f'{self.workdir.name}.{number}.log'
    path.touch()
    return path


def train(workdir, *flags, **settings):
  """Runs a command to its end; returns the output of process 0."""
  with Started(workdir, *flags, **settings) as run:
    codes = run.codes()
    assert not any(codes), f'{codes}:\n{run.output()[-4000:]}'
    return run.output()


def losses(workdir, names=COMPUTED):
  """Returns {step: what was computed in it} from metrics.jsonl."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  lines = [json.loads(s) for s in text.split('\n')[:-1]]
  return {
      line['step']: {name: line[name] for name in names}
      for line in lines
      if 'loss' in line
  }


def steps(workdir):
  """Returns the steps of the checkpoints, oldest first."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  return sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit())


def _start(words, log, rank, processes, port, devices):
  environment = {
      **os.environ,
      **FAST_COMPILE,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      'JAX_COMPILATION_CACHE_DIR': str(multihost.CACHE),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
      'OMP_NUM_THREADS': '1',
      'PYTHONUNBUFFERED': '1',
  }
  if processes > 1:
    environment |= {
        'IREPA_COORDINATOR': f'127.0.0.1:{port}',
        'IREPA_NUM_PROCESSES': str(processes),
        'IREPA_PROCESS_ID': str(rank),
    }
  with log.open('w') as output:
    return subprocess.Popen(
        words,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=multihost.ROOT,
        start_new_session=True,
    )
