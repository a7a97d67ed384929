"""Keeps orbax quiet where its complaint is raised and told in one line anyway.

One damaged file makes orbax and TensorStore print hundreds of lines: a
traceback for every other leaf that was being read, each once more when its
task is collected, and a dump of each array's specification. Every save prints
thirty lines of progress.
"""

import functools
import logging
import sys
import traceback
import warnings


@functools.cache
def silence():
  """Installs the filters, once."""
  logging.getLogger('absl').addFilter(_is_no_chatter)
  logging.getLogger('asyncio').addFilter(_is_foreign)
  sys.unraisablehook = functools.partial(_unless_late, sys.unraisablehook)
  warnings.filterwarnings('ignore', "coroutine '.*' was never awaited")


def _is_no_chatter(entry):
  """Drops progress lines, and tracebacks of what is raised as well."""
  chatter = entry.levelno < logging.WARNING or entry.exc_info
  return not (chatter and '/orbax/' in entry.pathname)


def _is_foreign(entry):
  """Drops asyncio's complaints about tasks of orbax that nobody awaits."""
  if not (entry.exc_info and 'never retrieved' in entry.getMessage()):
    return True
  frames = traceback.extract_tb(entry.exc_info[2])
  return not any('/orbax/' in frame.filename for frame in frames)


def _unless_late(show, unraisable):
  """Drops reads that are abandoned after the first of them has failed."""
  code = getattr(unraisable.object, 'cr_code', None)
  abandoned = code is not None and '/orbax/' in code.co_filename
  if not abandoned and str(unraisable.exc_value) != 'Event loop is closed':
    show(unraisable)
