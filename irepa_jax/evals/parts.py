"""Images on disk while they are made, and the ADM file they end in.

A folder holds `settings.json` and one npz per part, named by its first image.
What is there is not made again: a killed job continues, on any number of
processes, as long as its settings are the same. `merge` streams the parts into
one npz as the ADM evaluation reads it (guided-diffusion, evaluations/): arr_0
uint8 [n h w 3] and the labels in arr_1. Folders may be gs:// addresses.
"""

from concurrent import futures
import contextlib
import functools
import io
import json
import re
import zipfile

from absl import logging
from etils import epath
import numpy as np

from irepa_jax import errors
from irepa_jax.distributed import processes
from irepa_jax.evals import generate
from irepa_jax.names import file_names

SETTINGS = 'settings.json'
PART = 'part-{:08d}.npz'
NAME = re.compile(r'part-\d+\.npz')
THREADS = 32  # that look at parts; on gs:// each look is a request


def claim(folder, settings):
  """Makes the folder, or checks that it holds the parts of these settings.

  settings: whatever JSON can hold and decides about the images: the seed, the
  sampler, the step of the checkpoint. Raises UsageError naming what differs.
  """
  folder = epath.Path(file_names.check(folder))
  processes.on_first(functools.partial(_claim, folder, settings))


def write(folder, part):
  """Writes the rows of one process; a part is there whole or not at all."""
  if len(part.numbers):
    buffer = io.BytesIO()
    np.savez(buffer, **part._asdict())
    name = PART.format(part.numbers[0])
    _replace(epath.Path(folder) / name, buffer.getvalue())


def missing(folder, count):
  """Returns the numbers below `count` that are not there, to all processes.

  Parts that are cut off are removed and count as missing.
  """
  found = []

  def look():
    there = _places(epath.Path(folder))
    found.extend(i for i in range(count) if i not in there)

  processes.on_first(look)
  return processes.from_first(found, count)


def read(folder, count):
  """Yields the images 0 .. count - 1 in order, as parts. One process reads."""
  folder = epath.Path(folder)
  places = _places(folder)
  absent = [i for i in range(count) if i not in places]
  if absent:
    raise errors.DataError(
        f'{len(absent)} of {count} images are not in {folder} (first:'
        f' {absent[0]}); run the same command again to make them, in a folder'
        ' that all processes share'
    )
  first, loaded = 0, {}
  while first < count:
    path, row = places[first]
    if path not in loaded:
      loaded[path] = generate.Part(*_columns(path, generate.Part._fields))
    stop = first + 1
    while stop < count and places[stop] == (path, row + stop - first):
      stop += 1
    end = row + stop - first
    yield generate.Part(*(column[row:end] for column in loaded[path]))
    if end == len(loaded[path].numbers):
      del loaded[path]  # numbers ascend in a part: it is used up
    first = stop


def merge(folder, count, target):
  """Writes the ADM npz, one part in memory at a time.

  All processes call it, after their last write; the first one does it.
  """
  processes.worst(0)  # all have written
  processes.on_first(functools.partial(_merge, folder, count, target))


def remove(folder):
  """Deletes the parts of a folder after a merge, on the first process."""
  processes.on_first(epath.Path(folder).rmtree)


def _claim(folder, settings):
  settings = json.loads(json.dumps(settings))
  file = folder / SETTINGS
  if not file.exists():
    folder.mkdir(parents=True, exist_ok=True)
    _replace(file, json.dumps(settings, indent=2).encode())
  known = json.loads(file.read_text())
  changes = [
      f'{k}: {known.get(k)} there, {settings.get(k)} now'
      for k in known | settings
      if known.get(k) != settings.get(k)
  ]
  if changes:
    raise errors.UsageError(
        f'{folder} holds images of other settings ({"; ".join(changes[:3])});'
        ' delete it or choose another output'
    )


def _places(folder):
  """Returns {number: (part, row)}; parts without an end are removed."""
  paths = sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name))
  with futures.ThreadPoolExecutor(THREADS) as pool:
    found = pool.map(_numbers, paths)
  return {
      number: (path, row)
      for path, numbers in zip(paths, found, strict=True)
      for row, number in enumerate(numbers)
  }


def _numbers(path):
  """Returns the numbers of a part; none if it is damaged."""
  try:
    return _columns(path, ['numbers'])[0].tolist()
  except errors.DataError as error:
    logging.warning('%s', error)
    return []


def _columns(path, names):
  """Reads columns of a part; the zip verifies their checksums."""
  try:
    with path.open('rb') as file, np.load(file) as arrays:
      return [arrays[name] for name in names]
  except OSError:
    raise
  except Exception as error:  # a damaged zip raises anything
    path.unlink()
    raise errors.DataError(
        f'{path} was damaged ({error}) and has been removed; run the same'
        ' command again to make its images'
    ) from error


def _merge(folder, count, target):
  labels = []

  def images():
    for part in read(folder, count):
      labels.append(part.labels)
      yield part.images

  with (
      written(epath.Path(target)) as file,
      zipfile.ZipFile(file, 'w') as archive,
  ):
    _stream(archive, 'arr_0.npy', images(), count)
    _stream(archive, 'arr_1.npy', [np.concatenate(labels)], count)


def _stream(archive, name, blocks, count):
  """Writes blocks of rows as one array of `count` rows."""
  blocks = iter(blocks)
  block = next(blocks)
  header = {
      'descr': np.lib.format.dtype_to_descr(block.dtype),
      'fortran_order': False,
      'shape': (count, *block.shape[1:]),
  }
  with archive.open(name, 'w', force_zip64=True) as file:
    np.lib.format.write_array_header_1_0(file, header)
    while block is not None:
      file.write(np.ascontiguousarray(block).data)
      block = next(blocks, None)


def _replace(path, data):
  with written(path) as file:
    file.write(data)


@contextlib.contextmanager
def written(path):
  """Opens a file that takes its name only once it is whole."""
  file_names.check(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.parent / f'{path.name}.new'
  with new.open('wb') as file:
    yield file
  new.replace(path)
