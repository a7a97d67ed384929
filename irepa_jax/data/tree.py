"""Image files below a folder: what counts as one, and what was left out.

One rule for every command that reads folders (docs/data.md):

  an image   a file whose ending is one of images.EXTENSIONS, links included
  left out   hidden names, and those in which systems keep their own things;
             files with other endings; what is neither file nor folder; links
             that lead back to a folder that they lie in

Files of a folder come before its folders, each in the order of their names.
"""

import collections
import os
import pathlib
from typing import NamedTuple

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.names import file_names

# In lower case: of macOS archives, Synology and QNAP, Windows, ext4, Python.
SYSTEM = frozenset({
    '__macosx', '@eadir', '@tmp', '#recycle', '@recycle', '@__thumb', '#snapshot',
    'thumbs.db', 'ehthumbs.db', 'desktop.ini', '$recycle.bin',
    'system volume information', 'lost+found', '__pycache__', 'icon\r',
})  # fmt: skip
HIDDEN = 'hidden or of a system'
CIRCLE = 'links in a circle'
NO_FILE = 'neither files nor folders'
BESIDE = 'images beside the class folders'
SHOWN = 6  # reasons in a line


class Found(NamedTuple):
  """Paths below a root, and how many names were left out for which reason."""

  names: tuple
  left_out: collections.Counter


def images_below(root) -> Found:
  """Lists the images at any depth; DataError for a folder that is closed."""
  left_out = collections.Counter()
  return Found(tuple(_walk(str(root), '', (), left_out)), left_out)


def images_by_class(root):
  """Returns ({class folder: its images below root}, left_out)."""
  names, folders, left_out = _split(str(root), '')
  if names:
    left_out[BESIDE] += len(names)
  inside = (_identity(str(root)),)
  classes = {
      name: tuple(_walk(str(root), name, inside, left_out)) for name in folders
  }
  return classes, left_out


def told(left_out):
  """Returns '3 .txt files, 1 hidden or of a system'; '' where nothing was."""
  reasons = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
  shown = [f'{count:,} {reason}' for reason, count in reasons[:SHOWN]]
  rest = sum(count for _, count in reasons[SHOWN:])
  return ', '.join(shown + [f'{rest:,} others'] * bool(rest))


def _walk(root, folder, inside, left_out):
  """Yields the images in a folder below root, then those in its folders.

  inside: identities of the folders around it, by which a circle is seen.
  """
  identity = _identity(os.path.join(root, folder))
  if identity in inside:
    left_out[CIRCLE] += 1
    return
  names, folders, others = _split(root, folder)
  left_out.update(others)
  yield from names
  for name in folders:
    yield from _walk(root, name, (*inside, identity), left_out)


def _split(root, folder):
  """Returns (images, folders, left_out) of one folder, as paths below root."""
  names, folders, left_out = [], [], collections.Counter()
  for entry in _entries(os.path.join(root, folder)):
    path = os.path.join(folder, entry.name)
    if entry.name.startswith('.') or entry.name.lower() in SYSTEM:
      left_out[HIDDEN] += 1
    elif _is(entry.is_dir):
      folders.append(path)
    elif not entry.name.lower().endswith(images.EXTENSIONS):
      left_out[_ending(entry.name)] += 1
    elif _is(entry.is_file) or entry.is_symlink():  # broken links are unreadable
      names.append(path)
    else:
      left_out[NO_FILE] += 1
  return names, folders, left_out


def _entries(folder):
  try:
    with os.scandir(folder) as entries:
      return sorted(entries, key=lambda entry: entry.name)
  except OSError as error:
    raise errors.DataError(
        f'folder {file_names.shown(folder)} cannot be listed: {error.strerror}'
    ) from error


def _is(asked):
  """Returns asked(); False for a link that leads to itself."""
  try:
    return asked()
  except OSError:
    return False


def _ending(name):
  ending = pathlib.PurePath(name).suffix.lower()
  return f'{file_names.shown(ending)} files' if ending else 'without an ending'


def _identity(folder):
  """What two paths to one folder have in common; never equal where unknown."""
  try:
    status = os.stat(folder)
  except OSError:
    return folder
  return status.st_dev, status.st_ino
