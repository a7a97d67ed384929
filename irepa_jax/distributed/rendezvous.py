"""Waits until all processes of a job are there, and says who is missing.

jax.distributed waits in silence and then aborts the process. So before it
starts, process 0 listens at the coordinator's port, the others tell it who they
are, and it sends everyone the list of the missing until that is empty. Then it
listens no longer, so that jax.distributed can, and the connections stay as the
line between the processes (peers.py). Messages are lines of JSON: {"process",
"count", "host"} to process 0; {"missing", "host"} or {"error"} from it.
"""

import contextlib
import json
import select
import socket
import time
from typing import Any
from typing import NamedTuple

from absl import logging

from irepa_jax import errors

HINT = (
    'start the same command on every host (docs/launch.md), or set'
    ' IREPA_NUM_PROCESSES=1 to use this one alone'
)
RETRY_S = 0.5  # between two attempts to reach process 0
HELLO_S = 2  # for a connection to say who it is


class Connection(NamedTuple):
  """To another process."""

  socket: socket.socket
  lines: Any  # what it says, as a binary file
  host: str  # where it runs


def meet(processes, *, timeout, report_every=30):
  """Returns when all processes of the job have called it.

  Returns {process: Connection}: process 0 to all others, these to process 0.

  Args:
    processes: a complete cluster.Processes.
    timeout: seconds to wait for the others.
    report_every: seconds between two lines that say who is missing.

  Raises:
    UsageError: on all processes that are there, naming those that are not,
      or two that claim the same place.
  """
  deadline = time.monotonic() + timeout
  if processes.index == 0:
    with _listen(int(processes.coordinator.rsplit(':', 1)[1])) as listener:
      return _receive(listener, processes, deadline, timeout, report_every)
  return {0: _report(processes, deadline, timeout, report_every)}


def _listen(port):
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(
          ('', port), family=socket.AF_INET6, dualstack_ipv6=True
      )
    return socket.create_server(('', port))
  except OSError as error:
    raise errors.UsageError(
        f'cannot listen at port {port} as process 0 ({error.strerror}): another'
        ' job on this host? Set JAX_COORDINATOR_PORT, or IREPA_COORDINATOR='
        'HOST:PORT, on all processes'
    ) from None


def _receive(listener, processes, deadline, timeout, report_every):
  """What process 0 does: collects the others and tells them."""
  peers = {}  # process -> Connection
  started = time.monotonic()
  report = started + report_every
  try:
    while missing := _missing(peers, processes.count):
      now = time.monotonic()
      if now > deadline:
        raise errors.UsageError(_absent(missing, processes, timeout))
      if now > report:
        _log(missing, processes, now - started)
        _tell(peers, {'missing': missing})
        report += report_every
      wait = min(report, deadline) - now
      if select.select([listener], [], [], max(wait, 0.01))[0]:
        _admit(listener.accept()[0], peers, processes.count)
    listener.close()  # before the others start jax.distributed
    _tell(peers, {'missing': []})
    return peers
  except errors.UsageError as error:
    _tell(peers, {'error': str(error)})
    for connection in peers.values():
      connection.socket.close()
    raise


def _admit(connection, peers, count):
  """Adds the process at the other end; UsageError if it cannot belong here."""
  connection.settimeout(HELLO_S)
  try:
    lines = connection.makefile('rb')
    hello = json.loads(lines.readline())
    process, host = int(hello['process']), str(hello['host'])
  except (OSError, ValueError, TypeError, KeyError):
    connection.close()  # not one of ours: a port scan or a health check
    return
  before = peers.get(process)
  peers[process] = Connection(connection, lines, host)
  if hello['count'] != count or not 0 < process < count:
    raise errors.UsageError(
        f'process 0 expects {count} processes, but {host} is process'
        f' {process} of {hello["count"]}'
    )
  if before and _open(before.socket):
    error = (
        f'two processes say that they are process {process} of {count}: on'
        f' {before.host} and on {host}'
    )
    _tell({process: before}, {'error': error})
    raise errors.UsageError(error)


def _report(processes, deadline, timeout, report_every):
  """What the others do: tell process 0 who they are and wait for its word."""
  started = time.monotonic()
  report = started + report_every
  host, port = processes.coordinator.rsplit(':', 1)
  problem = None
  while (now := time.monotonic()) < deadline:
    if now > report:
      logging.warning(
          'waiting for process 0 of %d at %s (%.0f s): %s',
          processes.count,
          processes.coordinator,
          now - started,
          problem,
      )
      report += report_every
    try:
      connection = socket.create_connection((host.strip('[]'), port), 5)
      if found := _wait(connection, processes, deadline, started):
        return found
      connection.close()
      problem = 'it went away'
    except OSError as error:
      problem = error.strerror or error
    time.sleep(RETRY_S)
  raise errors.UsageError(
      f'process 0 of {processes.count} did not answer at'
      f' {processes.coordinator} within {timeout:g} s ({problem}); {HINT}'
  )


def _wait(connection, processes, deadline, started):
  """Returns the Connection once all are there; None if process 0 goes away."""
  hello = {
      'process': processes.index,
      'count': processes.count,
      'host': socket.gethostname(),
  }
  connection.sendall(json.dumps(hello).encode() + b'\n')
  # Process 0 may have started later than this one and then waits longer.
  connection.settimeout(2 * max(deadline - time.monotonic(), HELLO_S))
  lines = connection.makefile('rb')
  for line in lines:
    message = json.loads(line)
    if 'error' in message:
      raise errors.UsageError(message['error'])
    if not message['missing']:
      return Connection(connection, lines, message['host'])
    _log(message['missing'], processes, time.monotonic() - started)
  return None


def _missing(peers, count):
  return [process for process in range(1, count) if process not in peers]


def _log(missing, processes, seconds):
  logging.warning(
      'waiting for %d of %d processes (%.0f s) at %s: %s not there yet',
      len(missing),
      processes.count,
      seconds,
      processes.coordinator,
      _names(missing),
  )


def _absent(missing, processes, timeout):
  return (
      f'{len(missing)} of {processes.count} processes did not start within'
      f' {timeout:g} s: {_names(missing)} ({processes.source} says'
      f' {processes.count}); {HINT}'
  )


def _names(missing):
  text = ', '.join(map(str, missing[:8]))
  return f'process {text}' + (' ...' if len(missing) > 8 else '')


def _tell(peers, message):
  data = json.dumps(message | {'host': socket.gethostname()}).encode() + b'\n'
  for connection in peers.values():
    with contextlib.suppress(OSError):  # one that went away is missed later
      connection.socket.sendall(data)


def _open(connection):
  """Whether the other end still holds the connection."""
  try:
    connection.setblocking(False)
    return connection.recv(1, socket.MSG_PEEK) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False
