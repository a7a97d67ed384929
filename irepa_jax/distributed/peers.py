"""The line between the processes of a job, beside JAX, from start to end.

The connections over which the processes have met (rendezvous.py) stay open:
process 0 has one to every other. Over them

- all gather small messages without any collective of JAX, which would time out
  where one process still compiles;
- a process that ends with an error says so, and the others end with its line
  and its status within a second, wherever they wait;
- a process that is gone is missed at once; the others say which it was and end
  with status 75, which asks for another start.

Messages are lines of JSON: {"round", "data"} to process 0 and {"round", "all"}
from it; {"end", "text"}, where a text asks the others to end as well.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import sys
import threading
import time

from irepa_jax import errors

END_S = 5  # for the others to end
SETTLE_S = 2  # for the news of a process that is gone
# A host that vanishes without a word is missed after IDLE_S + TRIES * EVERY_S.
IDLE_S, EVERY_S, TRIES = 30, 10, 6


class Line:
  """The end of the line in this process; threads listen at it."""

  def __init__(self, index, connections):
    """Starts to listen.

    Args:
      index: of this process.
      connections: {process: rendezvous.Connection}; process 0 has all others,
        these have process 0.
    """
    self.index = index
    self._others = dict(connections)
    self._count = len(connections) + 1  # for process 0
    self._ended = set()  # processes that have said so
    self._sent = 0  # rounds of `gather`
    self._rounds = {}  # round -> {process: data}, or {'all': every data}
    self._news = threading.Condition()
    self._sending = threading.Lock()
    self._leaving = threading.Lock()  # taken once
    for process, connection in connections.items():
      _keep_alive(connection.socket)
      listen = functools.partial(self._listen, process, connection)
      threading.Thread(target=listen, daemon=True).start()

  def gather(self, data):
    """Returns the bytes of every process, in order; all have to call it."""
    number, self._sent = self._sent, self._sent + 1
    message = {'round': number, 'data': data.hex()}
    if self.index:
      self._send(message)
    else:
      self._collect(0, message)
    with self._news:
      self._news.wait_for(lambda: 'all' in self._rounds.get(number, ()))
      return [bytes.fromhex(text) for text in self._rounds.pop(number)['all']]

  def end(self, status, text=None):
    """Tells the others that this process ends; with a text they end too."""
    self._leaving.acquire()  # not given back: no other news counts now
    self._send({'end': status, 'text': text})
    if text is not None:
      self._go_last()

  def _send(self, message):
    data = json.dumps(message).encode() + b'\n'
    with self._sending:
      for connection in list(self._others.values()):
        with contextlib.suppress(OSError):  # the listener misses it
          connection.socket.sendall(data)

  def _listen(self, process, connection):
    with contextlib.suppress(OSError):
      for line in connection.lines:
        self._hear(process, json.loads(line))
    del self._others[process]
    if process not in self._ended:
      self._leave(
          errors.TRY_AGAIN,
          f'process {process} on {connection.host} is gone without a word:'
          ' killed, or its host lost. Start the same command again',
      )

  def _hear(self, process, message):
    if 'end' in message:
      self._ended.add(process)
      if message['text'] is not None:
        self._leave(message['end'], message['text'])
    elif 'all' in message:
      with self._news:
        self._rounds[message['round']] = message
        self._news.notify_all()
    else:
      self._collect(process, message)

  def _collect(self, process, message):
    """What process 0 does with the data of one process."""
    number = message['round']
    with self._news:
      found = self._rounds.setdefault(number, {})
      found[process] = message['data']
      if len(found) == self._count:
        self._rounds[number] = {'all': [found[i] for i in range(self._count)]}
        self._send({'round': number} | self._rounds[number])
        self._news.notify_all()

  def _leave(self, status, text):
    """Ends this process, in the place of a main thread that may be waiting."""
    if not self._leaving.acquire(blocking=False):
      return
    self._send({'end': status, 'text': text})
    with contextlib.suppress(Exception):
      print(f'ERROR: {text}', file=sys.stderr, flush=True)
    self._go_last()
    leave(status)

  def _go_last(self):
    """Waits, as process 0, for the others: jax.distributed ends with it."""
    end = time.monotonic() + END_S
    while not self.index and self._others and time.monotonic() < end:
      time.sleep(0.01)


_LINE = None
_LAST = []  # what is done before the program ends


def open_(index, connections):
  """Opens the line of this process; see Line."""
  global _LINE
  _LINE = Line(index, connections)
  _hold_aborts()
  atexit.register(_say_goodbye)  # before that of JAX, which waits


def line():
  """Returns the Line of this process; None where it is alone or has none."""
  return _LINE


def end(status, text):
  """Ends this process with an error, and all others with the same line.

  Returns where there are no others.
  """
  if _LINE is not None:
    _LINE.end(status, f'process {_LINE.index} ({socket.gethostname()}): {text}')
    leave(status)


def end_all(status, text):
  """Says why, and ends this process and all others at once."""
  with contextlib.suppress(Exception):
    print(f'ERROR: {text}', file=sys.stderr, flush=True)
  end(status, text)
  leave(status)


def at_end(action):
  """Has action() called where the program ends without unwinding."""
  _LAST.append(action)


def settle():
  """Waits for the news that an error is only the echo of a process that is gone.

  Then it does not return.
  """
  if _LINE is not None:
    time.sleep(SETTLE_S)


def leave(status):
  """Ends the process at once: jax.distributed would wait for the others."""
  for action in (*_LAST, sys.stdout.flush, sys.stderr.flush):
    with contextlib.suppress(Exception):
      action()
  os._exit(status)


def _say_goodbye():
  """At the end of the program; an error that nobody caught goes to all."""
  if error := getattr(sys, 'last_value', None):
    end(1, ' '.join(f'{type(error).__name__}: {error}'.split())[:300])
  _LINE.end(0)


def _hold_aborts():
  """Has abort() wait six seconds, so that the listener can say what happened.

  jax.distributed aborts the process as soon as it misses another one. The
  handler is sleep(3) itself, which takes the number of the signal as seconds.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _keep_alive(connection):
  """Sets a socket to wait for ever, but for a host that no longer answers."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (
      ('TCP_KEEPIDLE', IDLE_S), ('TCP_KEEPINTVL', EVERY_S), ('TCP_KEEPCNT', TRIES)
  ):  # fmt: skip
    if hasattr(socket, name):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

