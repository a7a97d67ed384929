"""Notices that the machine is being taken away, and processes that hang.

Each of signals.STOP asks the loop to save and to exit with EXIT_STATUS;
launchers start the job again on it. One process listens by itself. With
several, the notifier of jax.distributed owns SIGTERM, tells the other
processes, and lets all of them stop after the same call of `reached`, whichever
of them was told.
"""

import faulthandler
import os
import signal
import sys
import time

from absl import logging
import jax
from jax.experimental import multihost_utils

from irepa_jax import errors
from irepa_jax.distributed import peers
from irepa_jax.distributed import signals

EXIT_STATUS = errors.TRY_AGAIN
SECOND_S = 1.0  # two interrupts within it are one



class Preemption:
  """Made once, after jax.distributed and in the main thread, and then polled."""

  def __init__(self, *, watchdog_s=0):
    """Starts to listen.

    Args:
      watchdog_s: a process that stays silent for so many seconds (`alive`,
        `reached`) prints the stacks of all its threads and ends; the others
        then end too. 0 is off.
    """
    self._several = jax.process_count() > 1
    self._told = False  # this process has been asked to stop
    self._stop = False  # all processes have agreed to
    self._calls = 0
    self._watchdog_s = watchdog_s
    self._asked = None  # when the key was first pressed
    self._before = {
        number: signal.signal(number, self._on_signal)
        for number in self._signals()
    }
    self.alive()
    peers.at_end(self._show_stuck)

  def reached(self, step):
    """Whether to save and stop after this step: the same on all processes.

    All processes call it equally often, at the same points of any loop: after
    each step, batch of samples or evaluation. It costs microseconds.
    """
    self.alive()
    if self._stop:
      return True
    self._calls += 1
    if self._several:
      # Counts calls, not steps: loops of sampling and scoring poll as well.
      self._told = multihost_utils.reached_preemption_sync_point(self._calls)
    self._stop = self._told
    if self._stop:
      logging.warning('asked to stop: ending after step %d', step)
    return self._stop

  def alive(self):
    """Rearms the watchdog: call it where no step ends for a long time."""
    self._seen = time.monotonic()
    if self._watchdog_s:
      faulthandler.dump_traceback_later(
          self._watchdog_s, exit=True, file=sys.__stderr__
      )

  def close(self):
    """Gives the signals back and disarms the watchdog."""
    faulthandler.cancel_dump_traceback_later()
    self._watchdog_s = 0
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _show_stuck(self):
    """Prints the stacks where the watchdog of another process came first."""
    silent = time.monotonic() - self._seen
    if self._watchdog_s and silent > self._watchdog_s / 2:
      faulthandler.dump_traceback(file=sys.__stderr__)

  def _signals(self):
    # With several processes SIGTERM belongs to the notifier in C++.
    owned = [signal.SIGTERM] if self._several else []
    return [s for s in signals.listened() if s not in owned]

  def _on_signal(self, number, frame):
    """Asks for an orderly stop; Ctrl-C again, a second later, for one now."""
    now = time.monotonic()
    if number == signal.SIGINT:
      if self._asked is not None and now - self._asked > SECOND_S:
        signal.default_int_handler(number, frame)
      self._asked = self._asked or now
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)  # the notifier tells the others
    else:
      self._told = True
