"""The lock of a run directory: one job at a time.

Two jobs that write the same checkpoints and logs corrupt both. lock.json says
which process of which host works there, and counts a beat of life.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from absl import logging
from etils import epath

from irepa_jax import errors
from irepa_jax.distributed import processes

SEEN_S = 10  # in which a new file shows on all hosts


class Lock:
  """lock.json: which one job works on a run directory, and a beat of life.

  A thread of process 0 counts the beat up. A lock whose process has died on
  this host is taken over at once; of another host only the beat can be seen,
  so a newcomer watches for it, and takes over when it has stopped.
  """

  def __init__(self, workdir, *, beat_s=30, patience_s=120):
    """Names the lock; `take` makes it.

    Args:
      workdir: the run directory.
      beat_s: seconds between beats.
      patience_s: seconds for which a newcomer watches; several beats.
    """
    self._path = epath.Path(workdir) / 'lock.json'
    self._beat_s = beat_s
    self._patience_s = patience_s
    self._mine = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)

  def take(self):
    """Writes the lock; on process 0 only (see processes.on_first).

    Raises:
      CheckpointError: another job holds it.
      UsageError: the directory cannot be written.
    """
    self._mine = _identity()
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._take()
    except OSError as error:
      self._mine = None
      raise errors.UsageError(
          f'workdir {self._path.parent} is not writable: {error}'
      ) from error
    except errors.CheckpointError:
      self._mine = None
      raise
    self._thread.start()

  def release(self):
    """Removes the lock, if it is still this job's."""
    self._ended.set()
    if self._thread.is_alive():
      self._thread.join()
    if self._mine and self._is_mine():
      self._path.unlink()
    self._mine = None

  def check_seen(self):
    """Raises UsageError unless every process sees the lock of process 0.

    All of them call it. A network file system may show a file a little late.
    """
    run = processes.text_from_first(self._mine['run'] if self._mine else '')
    end = time.monotonic() + SEEN_S
    while not (seen := _peek(self._path).get('run') == run):
      if time.monotonic() > end:
        break
      time.sleep(0.1)
    told = processes.gather(str(seen))
    if 'False' in told:
      raise errors.UsageError(
          f'workdir {self._path.parent}: process {told.index("False")} does not'
          ' see what process 0 writes there. It has to be one folder for all'
          ' hosts: is it mounted everywhere?'
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.release()

  def _take(self):
    if self._create():
      return
    held = _peek(self._path)
    if self._holder_lives(held):
      raise errors.CheckpointError(
          f'another job works on {self._path.parent}: process {held.get("pid")}'
          f' on {held.get("host")} since {held.get("since")}. If it has ended,'
          f' remove {self._path}'
      )
    logging.warning('taking over %s: its job has ended', self._path.parent)
    write_json(self._path, self._mine)

  def _create(self):
    """Writes the lock unless there is one; atomic on a local file system."""
    if '://' in str(self._path):
      if self._path.exists():
        return False
      write_json(self._path, self._mine)
      return True
    try:
      with open(self._path, 'x') as file:
        file.write(json.dumps(self._mine))
    except FileExistsError:
      return False
    return True

  def _holder_lives(self, held):
    if all(held.get(k) == self._mine[k] for k in ('host', 'namespace')):
      return _alive(held)
    logging.warning('%s exists: watching it for a sign of life', self._path)
    end = time.monotonic() + self._patience_s
    while time.monotonic() < end:
      time.sleep(min(1, self._beat_s))
      now = _peek(self._path)
      if now != held:
        return bool(now)  # a beat; or gone or empty, so nobody's
    return False

  def _keep(self):
    """Counts the beat up until release, or until the lock is another's."""
    mine = self._mine
    while not self._ended.wait(self._beat_s):
      if not self._is_mine():
        logging.error('%s is no longer of this job', self._path)
        return
      mine['beat'] += 1
      with contextlib.suppress(OSError):  # a full disk is reported elsewhere
        write_json(self._path, mine)

  def _is_mine(self):
    return _peek(self._path).get('run') == self._mine['run']


def _identity():
  """Returns who this process is, so that another can tell whether it lives."""
  namespace = pathlib.Path('/proc/self/ns/pid')
  return {
      'host': socket.gethostname(),
      'namespace': os.readlink(namespace) if namespace.exists() else '',
      'pid': os.getpid(),
      'born': _birth(os.getpid()),
      'run': uuid.uuid4().hex[:8],
      'since': datetime.datetime.now().isoformat(timespec='seconds'),
      'beat': 0,
  }


def _alive(held):
  """Whether the process of a lock of this host runs (its id may be reused)."""
  try:
    os.kill(held['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # it exists, and is another user's
  return _birth(held['pid']) == held['born']


def _birth(pid):
  """Returns the start time of a process in clock ticks since boot, or None."""
  with contextlib.suppress(OSError):
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    state, *fields = text.rpartition(') ')[2].split()
    return None if state == 'Z' else fields[18]
  return None


def write_json(path, content):
  """Writes a whole file or nothing (a rename on a local file system)."""
  new = epath.Path(f'{path}.new')
  try:
    new.write_text(json.dumps(content, indent=1))
    new.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      new.unlink(missing_ok=True)
    raise


def _peek(path):
  """Returns a small file that others may be writing; {} if there is none."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
