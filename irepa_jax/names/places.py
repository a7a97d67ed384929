"""Where this package may write: its cache, and outputs, tried before the work.

Hours of sampling must not end in a name that cannot be written, nor a run in a
home directory that is not there. Addresses such as gs:// are not tried.
"""

import functools
import os
import pathlib
import tempfile

from absl import logging

from irepa_jax import errors


@functools.cache
def cache():
  """Returns the folder of this package in the user's cache.

  None where nothing can be written, which is told once: work goes on without.
  """
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    folder = pathlib.Path(root).expanduser() / 'irepa_jax'
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
    logging.warning(
        'nothing is cached: %s (XDG_CACHE_HOME names another folder)', error
    )
    return None
  return folder


def try_folder(path, name='out'):
  """Raises UsageError where nothing can be written below a folder.

  The folder need not be there and is not made. name: of the option.
  """
  if '://' not in str(path):
    _try(pathlib.Path(path), f'{name} {path}')


def try_file(path, name='out'):
  """Raises UsageError where no file can be written under this name."""
  if '://' in str(path):
    return
  path = pathlib.Path(path)
  if path.is_dir():
    raise errors.UsageError(f'{name} {path} is a folder; it must name a file')
  if path.exists() and not os.access(path, os.W_OK):
    raise errors.UsageError(f'{name} {path} is there and cannot be written')
  _try(path.parent, f'{name} {path}')


def _try(folder, told):
  place = folder.absolute()
  while not os.path.lexists(place):
    place = place.parent
  try:
    tempfile.TemporaryFile(dir=place).close()
  except OSError as error:
    raise errors.UsageError(
        f'{told} cannot be written: {place}: {error.strerror}'
    ) from error
