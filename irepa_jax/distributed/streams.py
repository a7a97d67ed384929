"""Standard output and error that may go away without ending the program.

A terminal that closes, `| head` or a full disk take a stream from a run that
goes on for days. What is printed from then on goes nowhere.
"""

import os
import sys


class Lasting:
  """A text stream whose writes never fail; all else is the stream's own."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text):
    """Writes as the stream does, or nowhere."""
    return self._do(self._stream.write, text)

  def flush(self):
    """Flushes as the stream does, or nothing."""
    self._do(self._stream.flush)

  def _do(self, action, *arguments):
    try:
      return action(*arguments)
    except (OSError, ValueError):  # the other end is closed; this one is
      self._to_nowhere()
      return len(''.join(arguments))

  def _to_nowhere(self):
    """Gives the file of the stream, which C++ writes to as well, to nobody."""
    nowhere = _nowhere()
    try:
      os.dup2(nowhere.fileno(), self._stream.fileno())
      nowhere.close()
    except (OSError, ValueError):  # it has no file any longer
      self._stream = nowhere

  def __getattr__(self, name):
    return getattr(self._stream, name)


def _nowhere():
  return os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w')


def outlast():
  """Puts Lasting in the place of both streams."""
  sys.stdout, sys.stderr = (
      Lasting(stream or _nowhere())
      for stream in (sys.stdout, sys.stderr)
  )
