"""Signals and hangs, with real processes."""

import os
import signal

import multihost
import pytest

from irepa_jax.distributed import preemption
from irepa_jax.distributed import signals

# Polls in a loop of steps that holds a loop of evaluation.
LOOP = '''
import time
from irepa_jax.distributed import preemption
stop = preemption.Preemption()
print('READY', flush=True)
time.sleep(arguments.get('first_s', 0))
for step in range(1, 3000):
  time.sleep(0.01)
  reached = stop.reached(step)
  if step % 10 == 0:
    for sample in range(5):
      reached = reached or stop.reached(step)
  if reached:
    result(step=step)
    sys.exit(preemption.EXIT_STATUS)
'''


@pytest.mark.parametrize('number', signals.STOP)
def test_one_process_stops_after_the_step(number):
  with multihost.Job(LOOP, processes=1, devices=1) as job:
    job.wait_for('READY')
    job.send(number)
    assert job.codes() == [75]
    assert len(job.lines(0)) == 1
    assert 'asked to stop' in job.output(0)


@pytest.mark.parametrize(
    'told, number', [(0, signal.SIGTERM), (1, signal.SIGUSR1)]
)
def test_all_processes_stop_at_the_same_step(told, number):
  with multihost.Job(LOOP, processes=2, devices=1) as job:
    for rank in (0, 1):
      job.wait_for('READY', rank)
    job.send(number, told)
    assert job.codes() == [75, 75]
    assert job.lines(0) == job.lines(1) != []


def test_a_notice_before_the_first_step_is_kept():
  with multihost.Job(LOOP, processes=2, devices=1, first_s=2.5) as job:
    for rank in (0, 1):
      job.wait_for('READY', rank)
    job.send(signal.SIGTERM, 1)
    assert job.codes() == [75, 75]
    assert job.lines(0) == job.lines(1)
    assert job.lines(0)[0]['step'] < 100


def test_an_ignored_signal_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    stop = preemption.Preemption()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.reached(1)
    stop.close()
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_later_second_interrupt_is_immediate(monkeypatch):
  stop = preemption.Preemption()
  try:
    for _ in range(2):  # at once: the terminal and the launcher both send it
      os.kill(os.getpid(), signal.SIGINT)
    assert stop.reached(1)
    monkeypatch.setattr(preemption, 'SECOND_S', -1.0)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
    assert stop.reached(2)
  finally:
    stop.close()


def test_signals_are_given_back():
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  stop = preemption.Preemption(watchdog_s=1000)
  assert not stop.reached(1)
  stop.close()
  after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  assert before == after


HANG = '''
import time
from jax.experimental import multihost_utils
from irepa_jax.distributed import preemption
stop = preemption.Preemption(watchdog_s=2)
multihost_utils.sync_global_devices('start')
def stuck():
  time.sleep(1000)
if rank == 1:
  stuck()
multihost_utils.process_allgather(jnp.ones(()))  # waits for the other for ever
'''


def test_a_process_that_hangs_ends_all_with_stacks():
  with multihost.Job(HANG, processes=2, devices=1) as job:
    assert all(job.codes())
    assert 'in stuck' in job.output(1)
    assert 'process_allgather' in job.output(0)
