"""TensorBoard events, written at once and by the thread that has them.

tensorboardX brings the format, without TensorFlow; its own writer hands events
to a thread, and waits for ever once a full disk has ended that.
"""

import contextlib
import math
import socket
import struct
import sys
import time

from absl import logging

VERSION = 'brain.Event:2'


class Events:
  """One file of events, of one start of a run."""

  def __init__(self, folder, resume_step):
    """Opens FOLDER/events...; later steps of earlier files are hidden.

    Args:
      folder: path, made if absent.
      resume_step: the step that was restored; 0 for a new run.
    """
    with _absent('torch'):  # optional there, and seconds to import
      from tensorboardX import record_writer  # a second, in process 0 only
      from tensorboardX import summary
      from tensorboardX.proto import event_pb2
    self._crc, self._summary = record_writer.masked_crc32c, summary
    self._proto = event_pb2
    folder.mkdir(parents=True, exist_ok=True)
    # The suffix tells two starts within one second apart.
    name = f'{int(time.time())}.{socket.gethostname()}.{resume_step}'
    self._path = folder / f'events.out.tfevents.{name}'
    self._file = self._path.open('ab', buffering=0)
    self._write(file_version=VERSION)
    if resume_step:
      started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(step=resume_step + 1, file_version=VERSION)
      self._write(step=resume_step + 1, session_log=started)

  def scalars(self, step, numbers):
    """Writes what is finite of a flat dict of numbers."""
    for name, value in numbers.items():
      if math.isfinite(value):
        summary = self._summary.scalar(name, value)
        self._write(step=step, summary=summary)

  def image(self, step, name, image):
    """Writes an image, uint8 [h w 3]."""
    summary = self._summary.image(name, image, dataformats='HWC')
    self._write(step=step, summary=summary)

  def close(self):
    """Closes the file."""
    self._file.close()

  def _write(self, **fields):
    """Appends one event; after a failure there are no more of this start."""
    if self._file.closed:
      return
    event = self._proto.Event(wall_time=time.time(), **fields)
    data = event.SerializeToString()
    length = struct.pack('<Q', len(data))
    crcs = (struct.pack('<I', self._crc(part)) for part in (length, data))
    try:
      self._file.write(length + next(crcs) + data + next(crcs))
    except OSError as error:
      logging.warning('no more events in %s: %s', self._path, error)
      self._file.close()


@contextlib.contextmanager
def _absent(package):
  """Lets an import do without a package, unless that is there already."""
  known = package in sys.modules
  sys.modules.setdefault(package, None)
  try:
    yield
  finally:
    if not known:
      del sys.modules[package]
