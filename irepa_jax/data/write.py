"""One shard: read images, encode them, pack records, tally the statistics.

Threads read and decode the next images while the devices encode the current
ones and this thread packs the last.
"""

import collections
from concurrent import futures
import contextlib
import math
import pathlib
import time
from typing import Any
from typing import NamedTuple

import numpy as np

from irepa_jax import errors
from irepa_jax.data import encode as encoding
from irepa_jax.data import images
from irepa_jax.data import manifest as manifests
from irepa_jax.data import records
from irepa_jax.data import shards

AHEAD = 2  # batches that are read before they are encoded
KINDS = ('data', 'flip')  # names of the shards, one per view


class Job(NamedTuple):
  """Everything that writing a shard needs."""

  source: Any
  out: pathlib.Path
  settings: dict  # written into every side-car
  image_size: int
  image_format: str  # jpeg, png, none
  num_classes: int  # labels must be smaller; 0 is not checked
  keep_moments: bool  # of a source that brings its own
  skip: bool  # leave unreadable images out, instead of failing
  grey: bool = False  # the autoencoder drops colours
  encode: encoding.Encode | None = None
  pool: futures.Executor | None = None


class Item(NamedTuple):
  """An image that was read, or why it was not."""

  position: int
  label: int = 0
  crop: images.Crop | None = None
  moments: Any = None
  problem: str = ''


class Chunk(NamedTuple):
  """Images that are encoded at once."""

  items: list  # of Item, readable
  pixels: np.ndarray  # uint8 [b s s 3]; zeros after the items
  skipped: list  # of Item, unreadable


class Pace(NamedTuple):
  """What the first images cost."""

  images: int
  read_s: float
  compile_s: float
  encode_s: float
  pack_s: float
  size: int  # bytes of their records

  @property
  def image_s(self):
    """Seconds per image: reading overlaps with the rest."""
    return max(self.read_s, self.encode_s + self.pack_s) / max(self.images, 1)


def shard(job, span, advance=lambda images: None):
  """Writes the records of a span and its side-car; returns the Part."""
  skipped, sums, labels, shapes, enlarged, coloured = [], [], [], None, 0, 0
  paths = [shards.path(job.out, span, kind) for kind in _kinds(job)]
  with contextlib.ExitStack() as stack:
    add = [stack.enter_context(records.writer(path)) for path in paths]
    for chunk, views in _encoded(job, span):
      packed, moments = pack(chunk, encoding.to_host(views))
      for append, rows in zip(add, packed, strict=True):
        for row in rows:
          append(row)
      if chunk.items:
        shapes = _shapes(moments, views)
        sums.append(_sums(moments, chunk.items))
      labels += [item.label for item in chunk.items]
      enlarged += sum(bool(i.crop and i.crop.enlarged) for i in chunk.items)
      if job.grey:
        coloured += sum(map(images.coloured, chunk.pixels))
      skipped += chunk.skipped
      advance(len(chunk.items) + len(chunk.skipped))
  mean, square = np.concatenate(sums).mean(0) if sums else ((), ())
  part = shards.Part(
      settings=job.settings,
      shard=records.describe(paths[0]),
      flip=records.describe(paths[1]) if len(paths) > 1 else None,
      labels=(min(labels), max(labels)) if labels else (),
      moments_shape=shapes[0] if shapes else (),
      features_shapes=shapes[1] if shapes else (),
      mean=tuple(mean),
      square=tuple(square),
      enlarged=enlarged,
      skipped=tuple(_entry(job.source, item) for item in skipped),
      coloured=coloured,
  )
  shards.write_part(job.out, span, part)
  return part


def measure(job, span):
  """Encodes the first images of a span, twice, and returns the Pace."""
  stop = min(span.stop, span.start + job.encode.batch_size)
  times = [time.perf_counter()]
  (chunk,) = _chunks(job, span._replace(stop=stop))
  times.append(time.perf_counter())
  for _ in range(2):
    views = encoding.to_host(job.encode.run(chunk.pixels))
    times.append(time.perf_counter())
  packed, _ = pack(chunk, views)
  times.append(time.perf_counter())
  read, first, again, packing = np.diff(times)
  size = sum(len(row) for rows in packed for row in rows)
  return Pace(
      len(chunk.items), read, max(first - again, 0.0), again, packing, size
  )


def pack(chunk, views):
  """Returns the records of each view, and the moments of the first."""
  rows = len(chunk.items)
  moments = [_moments(chunk, view) for view in views]
  packed = [
      [
          records.pack(
              item.label,
              moments=None if moments[v] is None else moments[v][k],
              image=item.crop.encoded if item.crop and v == 0 else b'',
              features=[tokens[k] for tokens in view.features],
          )
          for k, item in enumerate(chunk.items)
      ]
      for v, view in enumerate(views)
  ]
  return packed, None if moments[0] is None else moments[0][:rows]


def readable(job, position):
  """Whether an image that was skipped can be read now."""
  return not _load(job._replace(skip=True), position).problem


def _encoded(job, span):
  """Yields (chunk, views) one behind, so that the devices are not waited for."""
  last = None
  for chunk in _chunks(job, span):
    views = job.encode.run(chunk.pixels)
    if last is not None:
      yield last
    last = chunk, views
  yield last


def _chunks(job, span):
  ahead = collections.deque()
  for start in range(span.start, span.stop, job.encode.batch_size):
    stop = min(start + job.encode.batch_size, span.stop)
    load = [job.pool.submit(_load, job, i) for i in range(start, stop)]
    ahead.append(load)
    if len(ahead) > AHEAD:
      yield _chunk(job, ahead.popleft())
  while ahead:
    yield _chunk(job, ahead.popleft())


def _chunk(job, loaded):
  items = [item.result() for item in loaded]
  good = [item for item in items if not item.problem]
  size = job.image_size
  pixels = np.zeros((job.encode.batch_size, size, size, 3), np.uint8)
  for row, item in zip(pixels, good, strict=False):
    if item.crop is not None:
      row[:] = item.crop.pixels
  return Chunk(good, pixels, [item for item in items if item.problem])


def _load(job, position):
  try:
    example = job.source[position]
    crop = None
    if example.image is not None:
      crop = images.crop(example.image, job.image_size, job.image_format)
  except (errors.DataError, OSError) as error:
    if not job.skip:
      raise errors.DataError(f'{job.source.name(position)}: {error}') from error
    return Item(position, problem=str(error))
  _check_label(job, position, example.label)
  moments = example.moments if job.keep_moments else None
  return Item(position, example.label, crop, moments)


def _check_label(job, position, label):
  try:
    manifests.check_label(label, job.num_classes or math.inf)
  except errors.DataError as error:
    raise errors.DataError(f'{job.source.name(position)}: {error}') from error


def _kinds(job):
  return KINDS[: job.encode.views]


def _moments(chunk, view):
  """Moments that were computed, or those that came with the source."""
  if view.moments is not None or not chunk.items:
    return view.moments
  given = [item.moments for item in chunk.items]
  return None if given[0] is None else np.stack(given)


def _shapes(moments, views):
  shape = () if moments is None else moments.shape[1:]
  return shape, tuple(tokens.shape[1:] for tokens in views[0].features)


def _sums(moments, items):
  """Returns means of z and z**2 of each image, per channel, [b 2 c]."""
  if moments is None:
    return np.zeros((len(items), 2, 0))
  finite = np.isfinite(moments).all(axis=(1, 2, 3))
  if not finite.all():
    raise errors.DataError(
        f'latents of image {items[int(np.argmin(finite))].position} are not'
        ' finite in float16; are these the right weights?'
    )
  mean, std = np.split(np.float64(moments), 2, axis=-1)
  if std.min() < 0:
    raise errors.DataError(
        'the second half of the moments has negative values: log variances,'
        ' where standard deviations are expected'
    )
  return np.stack([mean, mean**2 + std**2], axis=1).mean((2, 3))


def _entry(source, item):
  return item.position, source.name(item.position), item.problem
