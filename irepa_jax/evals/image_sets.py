"""Sets of finished images, in order, a batch at a time and never whole.

  samples.npz       the ADM file: arr_0 uint8 [n h w 3]
  folder            image files in it and below, in the order of their paths
  prepared data     a folder with manifest.json whose records hold images

Fifty thousand images of 256 pixels are 9.8 GB: an npz is read through as a
stream, which also verifies its checksum, and of files only those are decoded
whose rows this process feeds to its devices.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import hashlib
import os
import pathlib
from typing import NamedTuple
import zipfile
import zlib

from etils import epath
import numpy as np

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.data import staging
from irepa_jax.data import tree
from irepa_jax.distributed import processes

MEMBER = 'arr_0.npy'
THREADS = 16  # that decode files
CHUNK = 2**24  # bytes of a file that are hashed at a time
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError)
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ImageSet(NamedTuple):
  """Images of one size, uint8, numbered from 0.

  origin: where they lie.
  sha256: () -> of the npz; of the names and sizes of files; of the shards of
    a data set.
  count: of the images.
  side: (height, width) in pixels.
  batches: (size, rows) -> iterator over the batches of `size` images, of each
    the given rows [r h w 3]; the last one is filled up with zeros.
  """

  origin: str
  sha256: Callable[[], str]
  count: int
  side: tuple[int, int]
  batches: Callable[[int, Sequence[int]], Iterator[np.ndarray]]


def open_(path) -> ImageSet:
  """Opens what the path holds; DataError in one line if that is no set."""
  if staging.is_remote(path) and not str(path).endswith('.npz'):
    return open_data(path)
  path = epath.Path(path)
  if path.suffix == '.npz':
    return open_npz(path)
  if not path.is_dir():
    raise errors.DataError(
        f'images {path}: expected an .npz file, a folder of images or a prepared'
        f' data set; {"it is another kind of file" if path.exists() else "nothing there"}'
    )
  if (path / manifests.NAME).exists():
    return open_data(path)
  return open_folder(path)


def open_npz(path) -> ImageSet:
  """Opens the images of an ADM npz; DataError unless uint8 [n h w 3]."""
  names = npz_names(path)
  if MEMBER not in names:
    raise errors.DataError(
        f'{path} has no images: expected arr_0, uint8 [n h w 3]; it holds'
        f' {", ".join(n.removesuffix(".npy") for n in names) or "nothing"}'
    )
  with _member(path) as file:
    shape = _checked_shape(file, path)
  count, height, width, _ = shape
  return ImageSet(
      str(path),
      lambda: file_sha256(path),
      count,
      (height, width),
      lambda size, rows: _npz_batches(path, shape, size, rows),
  )


def npz_names(path):
  """Lists the arrays of an npz, as 'name.npy'."""
  path = epath.Path(path)
  if not path.exists():
    raise errors.DataError(f'{path} not found')
  try:
    with path.open('rb') as file, zipfile.ZipFile(file) as archive:
      return archive.namelist()
  except DAMAGED as error:
    raise errors.DataError(
        f'{path} is no npz file or is damaged: {error}'
    ) from error


def file_sha256(path):
  """Returns the SHA-256 of a file, which may lie in a bucket."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(CHUNK):
      digest.update(block)
  return digest.hexdigest()


def open_folder(path) -> ImageSet:
  """Opens the image files in a folder and below it."""
  manifests.check_local(path)
  root = pathlib.Path(path)
  names, left_out = tree.images_below(root)
  files = sorted(root / name for name in names)
  if not files:
    raise errors.DataError(
        f'no images in {root} or below it ({" ".join(images.EXTENSIONS)}); it'
        f' holds {tree.told(left_out) or "nothing"}'
    )
  if left_out and processes.is_first():
    print(f'{root}: {len(files):,} images; ignored: {tree.told(left_out)}')
  side = _decode(files[0]).shape[:2]
  return ImageSet(
      str(root),
      lambda: _listing_sha256(root, files),
      len(files),
      side,
      lambda size, rows: _picked(
          lambda i: _sized(_decode(files[i]), side, files[i]),
          len(files),
          side,
          size,
          rows,
      ),
  )


def open_data(path) -> ImageSet:
  """Opens the images of a data set that tools.prepare has written."""
  data = pipeline.load(path)
  manifest = data.manifest
  if manifest.image_format == 'none':
    raise errors.DataError(
        f'data set {path} keeps no images: prepare it with'
        ' --image_format=png or jpeg'
    )
  shards = ' '.join(shard.sha256 for shard in manifest.shards)
  side = (manifest.image_size,) * 2
  return ImageSet(
      str(path),
      lambda: hashlib.sha256(shards.encode()).hexdigest(),
      len(data),
      side,
      lambda size, rows: _picked(
          lambda i: data.example(i, features=False)['image'],
          len(data),
          side,
          size,
          rows,
      ),
  )


def _listing_sha256(root, files):
  listing = [f'{f.relative_to(root)} {f.stat().st_size}' for f in files]
  return hashlib.sha256(os.fsencode('\n'.join(listing))).hexdigest()


@contextlib.contextmanager
def _member(path):
  """Opens arr_0 of an npz as a stream."""
  with (
      epath.Path(path).open('rb') as file,
      zipfile.ZipFile(file) as archive,
      archive.open(MEMBER) as member,
  ):
    yield member


def _checked_shape(file, path):
  """Reads the header of an array; returns (n, h, w, 3)."""
  try:
    read = HEADERS[np.lib.format.read_magic(file)]
    shape, fortran, dtype = read(file)
  except DAMAGED as error:
    raise errors.DataError(f'{path}: arr_0 is damaged: {error}') from error
  right = dtype == np.uint8 and len(shape) == 4 and shape[3] == 3
  if not right or fortran or 0 in shape:
    hint = ''
    if dtype.kind == 'f':
      hint = '; images in 0..1 become (255 * x + 0.5).astype(np.uint8)'
    elif len(shape) == 4 and shape[1] == 3:
      hint = '; transpose(0, 2, 3, 1) moves the channels last'
    raise errors.DataError(
        f'{path}: arr_0 is {dtype} {list(shape)}'
        f'{" in Fortran order" if fortran else ""}; expected uint8 [n h w 3]'
        f' in 0..255{hint}'
    )
  return shape


def _npz_batches(path, shape, size, rows):
  """Yields rows of every batch; reading to the end verifies the checksum."""
  image = shape[1:]
  volume = int(np.prod(image))
  with _member(path) as file:
    _checked_shape(file, path)
    for first in range(0, shape[0], size):
      n = min(size, shape[0] - first)
      data = _read(file, n * volume, path)
      block = np.frombuffer(data, np.uint8).reshape(n, *image)
      yield _rows(block, size)[list(rows)]
    _read(file, 0, path)


def _read(file, count, path):
  """Reads exactly so many bytes; 0: what follows, which must be nothing."""
  try:
    data = file.read(count or -1)
  except DAMAGED as error:
    raise errors.DataError(f'{path} is damaged: {error}') from error
  if len(data) != count:
    raise errors.DataError(
        f'{path} is damaged: arr_0 is not as long as its shape says'
    )
  return data


def _rows(block, size):
  """Fills a block up to `size` rows with zeros."""
  short = size - len(block)
  return np.pad(block, [(0, short)] + [(0, 0)] * (block.ndim - 1))


def _picked(read, count, side, size, rows):
  """Yields batches from a function of the number, decoded by threads."""
  nothing = np.zeros((*side, 3), np.uint8)
  with futures.ThreadPoolExecutor(THREADS) as pool:
    for first in range(0, count, size):
      numbers = [first + row for row in rows]
      found = pool.map(lambda i: read(i) if i < count else nothing, numbers)
      yield np.stack(list(found))


def _decode(path):
  try:
    return images.decode(path.read_bytes())
  except (errors.DataError, OSError) as error:
    raise errors.DataError(f'{path}: {error}') from error


def _sized(pixels, side, path):
  """Raises DataError where an image has not the size of the first."""
  if pixels.shape[:2] != tuple(side):
    raise errors.DataError(
        f'{path} is {pixels.shape[0]}x{pixels.shape[1]} pixels, the first image'
        f' {side[0]}x{side[1]}: scores need one size; tools.prepare crops a'
        ' folder as the training images are'
    )
  return pixels
