"""Several real processes on this machine, through the launchers."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Adds a number on all devices, then does what the test asks for. Each line is
# one write: two processes that share a pipe would otherwise mix their words.
JOB = """
  import os, sys, time
  from irepa_jax.distributed import start, preemption
  start.join()
  import jax
  from irepa_jax.jobs import devices
  assert sys.argv[1:] == ['--x=a b', "it's"], sys.argv
  say = lambda *words: os.write(1, (' '.join(map(str, words)) + '\\n').encode())
  say('count', jax.process_count(), 'sum', devices.device_sum())
  {then}
"""
LISTEN = """
  asked = preemption.Preemption()
  say('READY')
  step = 0
  while not asked.reached(step):
    step += 1
    time.sleep(0.02)
  say('stopped after', step)
  sys.exit(preemption.EXIT_STATUS)
"""
FAIL = """
  say('READY')
  if jax.process_index() == 1:
    os._exit(3)
  time.sleep(600)
"""


def job(tmp_path, then):
  """Writes the module `launched_job`; returns the environment to run it in."""
  text = textwrap.dedent(JOB).format(then=textwrap.dedent(then).strip())
  (tmp_path / 'launched_job.py').write_text(text)
  environ = {
      k: v
      for k, v in os.environ.items()
      if k != 'XLA_FLAGS' and not k.startswith(('IREPA_', 'SLURM_'))
  }
  return environ | {
      'PYTHON': sys.executable,
      'PYTHONPATH': f'{tmp_path}:{ROOT}',
      'PYTHONUNBUFFERED': '1',
      'IREPA_HEARTBEAT_TIMEOUT': '20',
      'OMP_NUM_THREADS': '1',
  }


def processes(tmp_path, then, *options):
  return subprocess.Popen(
      [
          ROOT / 'launch/processes.sh', '--processes=2', '--devices=2',
          f'--logs={tmp_path}/logs', '--module=launched_job', *options,
          '--', '--x=a b', "it's",
      ],
      env=job(tmp_path, then),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=tmp_path,
  )  # fmt: skip


def log(tmp_path, rank):
  path = tmp_path / f'logs/{rank}.log'
  return path.read_text() if path.exists() else ''


def wait_for(launcher, condition):
  while not condition():
    assert launcher.poll() is None, launcher.stdout.read()
    time.sleep(0.05)


def test_processes_work_and_stop_together(tmp_path):
  with processes(tmp_path, LISTEN) as launcher:
    wait_for(
        launcher,
        lambda: all('READY' in log(tmp_path, i) for i in range(2)),
    )
    launcher.send_signal(signal.SIGTERM)
    shown, _ = launcher.communicate(timeout=300)
  assert launcher.returncode == 75, shown
  for rank in range(2):
    assert 'count 2 sum 6.0' in log(tmp_path, rank)
  assert 'stopped after' in shown  # process 0 is shown
  stops = {log(tmp_path, i).split('stopped after')[1].split()[0] for i in (0, 1)}
  assert len(stops) == 1


def test_one_failure_ends_all(tmp_path):
  with processes(tmp_path, FAIL, '--grace=0') as launcher:
    shown, _ = launcher.communicate(timeout=300)
  assert launcher.returncode == 3, shown
  assert 'process 1 ended with status 3' in shown


SRUN = """\
#!/usr/bin/env bash
# Two tasks of one step, as srun starts them; its status is the highest.
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost
export SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0 SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & a=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & b=$!
wait $a; x=$?; wait $b; y=$?
exit $((x > y ? x : y))
"""


@pytest.mark.parametrize(
    'status, before, again',
    [(0, 0, False), (75, 20, True), (2, 0, False), (137, 9, True), (1, 10, False)],
)
def test_slurm_job_goes_back_into_the_queue(tmp_path, status, before, again):
  srun, scontrol = tmp_path / 'srun', tmp_path / 'scontrol'
  srun.write_text(SRUN if status == 75 else f'#!/bin/sh\nexit {status}\n')
  scontrol.write_text('#!/bin/sh\necho "$@" > requeued\n')
  for path in (srun, scontrol):
    path.chmod(0o755)
  environ = job(tmp_path, 'sys.exit(75)') | {
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'SLURM_JOB_ID': str(os.getpid()),
      'SLURM_SUBMIT_DIR': str(ROOT),
      'SLURM_RESTART_COUNT': str(before),
  }
  # SLURM runs a copy of the script.
  copy = tmp_path / 'slurm_script'
  copy.write_bytes((ROOT / 'launch/slurm.sbatch').read_bytes())
  done = subprocess.run(
      [
          'bash', copy, '--platform=cpu', '--module=launched_job', '--',
          '--x=a b', "it's",
      ],
      env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == status, done.stderr
  assert (tmp_path / 'requeued').exists() == again
  if status == 75:
    assert done.stdout.count('count 2 sum 1.0') == 2
    assert (tmp_path / 'requeued').read_text() == f'requeue {os.getpid()}\n'
