"""The images of an analysis, cut to one size and read in batches.

  a folder        all images below it, at any depth
  a data set      a folder written by irepa_jax.tools.prepare, with labels and,
                  where it has them, the moments of the latents
  sklearn:photos  the two photographs that ship with scikit-learn
  anything else   a source of irepa_jax.tools.prepare: digits, tfds:NAME ...

Nothing holds all images: a batch is decoded by threads while the one before it
is worked on.
"""

from concurrent import futures
import dataclasses
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
import PIL.Image

from irepa_jax import errors
from irepa_jax.analysis import masks as region
from irepa_jax.data import images
from irepa_jax.data import manifest as manifests
from irepa_jax.data import records
from irepa_jax.data import sources
from irepa_jax.data import staging
from irepa_jax.data import tree

PHOTOS = 'sklearn:photos'
LEAST = 2  # images, for a standard error


class Picture(NamedTuple):
  """One image before it is cut."""

  pixels: np.ndarray  # uint8 [h w 3]
  label: int  # -1 where there is none
  moments: Any = None  # float16 [h w 2c] where the data set has latents


class Batch(NamedTuple):
  """Some images; the last batch repeats its last image up to full size."""

  index: np.ndarray  # int position in the pictures, [b]
  count: int  # of rows that are not repetitions
  image: np.ndarray  # uint8 [b s s 3]
  label: np.ndarray  # int32 [b], -1 where there is none
  mask: np.ndarray | None  # bool [b s s], true is foreground
  moments: np.ndarray | None  # float16 [b h w 2c]


@dataclasses.dataclass(frozen=True)
class Files:
  """All images below a folder, in the order of their names."""

  root: pathlib.Path
  names: tuple
  left_out: str  # what else lies there, for the user

  def __len__(self):
    return len(self.names)

  def __getitem__(self, i):
    return Picture(images.decode((self.root / self.names[i]).read_bytes()), -1)

  def name(self, i):
    return self.names[i]


@dataclasses.dataclass(frozen=True)
class DataSet:
  """The images of a prepared data set."""

  folder: pathlib.Path
  manifest: manifests.Manifest
  records: records.Records
  left_out = ''

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    record, shape = self.records[i], self.manifest.moments_shape
    moments = records.moments(record, shape) if shape else None
    return Picture(images.decode(record['image']), record['label'], moments)

  def name(self, i):
    return f'{i:08d}'


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of irepa_jax.tools.prepare."""

  rows: Any

  @property
  def left_out(self):
    return self.rows.left_out

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    image, label, _ = self.rows[i]
    pixels = image if isinstance(image, np.ndarray) else images.decode(image)
    return Picture(pixels, label)

  def name(self, i):
    return self.rows.name(i)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Images cut to size x size by the ADM crop."""

  origin: Any  # Files, DataSet or Source
  rows: tuple  # of the origin
  size: int

  def __len__(self):
    return len(self.rows)

  def name(self, i):
    return self.origin.name(self.rows[i])

  def describe(self):
    """Says in a line what will be read, and in another what will not."""
    left_out = self.origin.left_out
    return (
        f'{len(self)} images of {self.size} x {self.size} pixels:'
        f' {self.name(0)} to {self.name(len(self) - 1)}'
    ) + (f'\nignored: {left_out}' if left_out else '')

  def read(self, i, masks=None):
    """Returns (pixels uint8 [s s 3], label, mask bool [s s], moments)."""
    try:
      picture = self.origin[self.rows[i]]
    except (errors.DataError, OSError) as error:
      raise errors.DataError(f'{self.name(i)}: {error}') from error
    pixels = images.center_crop(PIL.Image.fromarray(picture.pixels), self.size)
    mask = masks and masks(self.name(i), picture.pixels.shape[:2], pixels)
    return pixels, picture.label, mask, picture.moments


def open_pictures(spec, size, limit=0):
  """Opens the images named by `spec`, `limit` of them evenly spaced.

  size: of the crop in pixels; limit 0 takes all.
  """
  origin = _open(spec, size)
  count = min(limit or len(origin), len(origin))
  if count < LEAST:
    raise errors.DataError(
        f'{spec} gives {count} image: at least {LEAST} are needed for a mean'
        ' and its error'
    )
  rows = np.linspace(0, len(origin) - 1, count).round().astype(int)
  return Pictures(origin, tuple(rows.tolist()), size)


def batches(pictures, batch_size, masks=None):
  """Yields all pictures as batches of one shape, decoded one batch ahead.

  masks: maps (name, (height, width) of the file, pixels of the crop) to a mask.
  """
  starts = range(0, len(pictures), batch_size)
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:

    def submit(start):
      index = np.arange(start, min(start + batch_size, len(pictures)))
      read = lambda i: pictures.read(i, masks)
      return index, [pool.submit(read, i) for i in index]

    ahead = submit(0)
    for start in starts:
      index, pending = ahead
      if start + batch_size < len(pictures):
        ahead = submit(start + batch_size)
      yield _stack(index, [p.result() for p in pending], batch_size)


def mask_reader(kind, size):
  """Returns the masks of `batches`: from a folder, guessed (auto), or None."""
  if kind == 'none':
    return None
  if kind == 'auto':
    return lambda name, shape, pixels: region.guess(pixels)
  folder = region.Folder(kind)
  return lambda name, shape, pixels: folder(name, shape, size)


def _open(spec, size):
  if spec == PHOTOS:
    return dataclasses.replace(_open_files(_photos()), left_out='')
  folder = pathlib.Path(staging.local(spec))
  if (folder / manifests.NAME).is_file():
    return _open_data_set(folder, size)
  if folder.is_dir():
    return _open_files(folder)
  if ':' not in spec and spec not in sources.KINDS:
    raise errors.DataError(
        f'{spec} not found: a folder of images, a prepared data set,'
        f' {PHOTOS}, or a source such as digits or tfds:NAME'
    )
  source = sources.create(spec)
  if not source.has_images:
    raise errors.DataError(f'{spec} holds latents without images')
  return Source(source)


def _photos():
  try:
    from sklearn import datasets
  except ImportError as error:
    raise errors.UsageError(
        f'{PHOTOS} ships with scikit-learn: pip install scikit-learn'
    ) from error
  return pathlib.Path(datasets.__file__).parent / 'images'


def _open_files(root):
  names, left_out = tree.images_below(root)
  left_out = tree.told(left_out)
  if not names:
    raise errors.DataError(
        f'no images under {root}: expected {" ".join(images.EXTENSIONS)}'
        + (f'; ignored: {left_out}' if left_out else '')
    )
  return Files(root, tuple(sorted(names)), left_out)


def _open_data_set(folder, size):
  manifest = manifests.read(folder)
  manifests.check(manifest, image_size=size, images_needed=True)
  return DataSet(folder, manifest, records.Records(folder, manifest.shards))


def _stack(index, rows, batch_size):
  rows = [*rows, *[rows[-1]] * (batch_size - len(rows))]
  image, label, mask, moments = zip(*rows, strict=True)
  stacked = lambda values: None if values[0] is None else np.stack(values)
  full = np.pad(index, (0, batch_size - len(index)), mode='edge')
  return Batch(
      full,
      len(index),
      np.stack(image),
      np.int32(label),
      stacked(mask),
      stacked(moments),
  )
