"""What asks a program to stop, from its first moment on.

SIGTERM comes from preemption, scancel and kubectl delete; SIGUSR1 from SLURM
before the end of its time; SIGHUP from a terminal that closes; SIGINT and
SIGQUIT from its keys. Until `preemption.Preemption` takes them over there is
nothing to save: the program ends at once, with the status that asks for another
start. This module knows no JAX, so that it comes before: an interrupt while
JAX is being imported crashes the process.
"""

import contextlib
import signal

from irepa_jax import errors
from irepa_jax.distributed import peers

STOP = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
)


def listened():
  """Returns the signals that are not ignored, as under nohup."""
  return [s for s in STOP if signal.getsignal(s) is not signal.SIG_IGN]


def end_at_once():
  """Has each of them end the program, and the other processes with it."""
  for number in listened():
    signal.signal(number, _end)


@contextlib.contextmanager
def kept(text):
  """Has an end inside say what is on disk already, and how to go on."""
  global _kept
  before, _kept = _kept, text
  try:
    yield
  finally:
    _kept = before


_kept = 'nothing to save yet'


def _end(number, frame):
  del frame
  name = signal.Signals(number).name
  peers.end_all(errors.TRY_AGAIN, f'asked to stop ({name}); {_kept}')
