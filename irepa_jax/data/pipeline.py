"""Batches in an order that is a pure function of (seed, step, row).

Row r of global batch t is example g = t * batch_size + r of an endless stream:
epoch e = g // N takes every record once, in the order of a pseudorandom
permutation keyed by (seed, e). So the position of a run is one integer, its
step, and any number of processes, threads and devices sees the same example in
the same row. Whether it is mirrored is a bit hashed from (seed, e, record).
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import struct
import sys
from typing import NamedTuple

from absl import logging
import grain
import jax
import numpy as np

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.data import manifest as manifests
from irepa_jax.data import records
from irepa_jax.data import staging

ROUNDS = 4  # of grain's cipher over record indices
CHUNK = 32  # records that a thread reads at once: nine times less overhead
SAMPLE = 64  # records that are read when a data set is opened
MAX_BAD = 100  # damaged records that are passed over before it is an error
HASH_THREADS = 8


def load(folder, *, verify=False, skip_bad=False, view=None):
  """Opens a data set, checks its files, and returns a Dataset.

  One in a bucket is copied to the local disk first (see staging).

  Every shard must have the size that the manifest states, and a sample of
  records the shapes and statistics; `verify` also compares all checksums;
  `skip_bad`: see `batches`. view(manifest) -> manifest leaves out what is not
  wanted, as manifests.of_images.
  """
  folder = staging.local(folder)
  manifest = manifests.read(folder)
  manifest = view(manifest) if view else manifest
  check = records.check_hash if verify else records.check_size
  with futures.ThreadPoolExecutor(HASH_THREADS) as pool:
    shards = [*manifest.shards, *manifest.flips]
    list(pool.map(functools.partial(check, folder), shards))
  dataset = Dataset(folder, manifest)
  some = np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset)), dtype=int)
  read = _Replacing(dataset) if skip_bad else dataset.example
  sample = [read(int(i)) for i in some]
  if manifest.moments_shape:
    moments = np.stack([example['moments'] for example in sample])
    manifests.check_moments(manifest, moments)
  return dataset


class Dataset:
  """A prepared folder: `manifest`, and every record by its index."""

  def __init__(self, folder, manifest):
    self.manifest = manifest
    self.records = records.Records(folder, manifest.shards)
    self.flips = records.Records(folder, manifest.flips)

  def __len__(self):
    return self.manifest.count

  def example(self, index, *, flip=False, image=True, features=True):
    """Returns a record as a dict of arrays.

    Args:
      index: of the record.
      flip: whether to return the mirror image, its latents and its features.
      image: whether the image is wanted, where there is one.
      features: the names of the encoders whose tokens are wanted, in this
        order; True is all that are stored.
    """
    stored = self.flips if flip and len(self.flips) else self.records
    try:
      view = stored[index]
      base = self.records[index] if image and flip else view
      return self._arrays(base, view, flip, image, features)
    except (errors.DataError, KeyError, TypeError, ValueError) as error:
      if str(error).startswith('shard '):
        raise
      raise errors.DataError(f'{stored.where(index)}: {error}') from error

  def _arrays(self, base, view, flip, image, features):
    manifest, label = self.manifest, view['label']
    manifests.check_label(label, manifest.num_classes)
    out = {'label': np.int32(label)}
    if manifest.moments_shape:
      out['moments'] = records.moments(view, manifest.moments_shape)
    if image and manifest.image_format != 'none':
      pixels = images.decode(base['image'])
      manifests.check_pixels(manifest, pixels)
      out['image'] = pixels[:, ::-1] if flip else pixels
    if features and manifest.encoders:
      out['features'] = tuple(
          records.features(view, k, manifest.encoders[k].shape)
          for k in manifests.places(manifest, features)
      )
    return out

  def close(self):
    """Closes the files."""
    self.records.close()
    self.flips.close()


class Place(NamedTuple):
  """Which record stands in a row."""

  epoch: int
  index: int  # of the record
  flip: bool


def place(position, *, count, seed, flips=False):
  """Returns the Place of example `position` of the stream of `count` records."""
  epoch, i = divmod(position, count)
  index = grain.experimental.index_shuffle(
      i, max_index=count - 1, seed=_hash(seed, epoch), rounds=ROUNDS
  )
  return Place(epoch, index, flips and bool(_hash(seed, epoch, index) & 1))


def local_rows(sharding, batch_size):
  """Returns the rows of a global batch that this process puts on its devices."""
  shards = sharding.addressable_devices_indices_map((batch_size,))
  rows = {
      row for (s,) in shards.values() for row in range(*s.indices(batch_size))
  }
  return sorted(rows)


def batches(
    dataset,
    *,
    batch_size,
    seed,
    start_step=0,
    rows=None,
    flips=False,
    image=True,
    features=True,
    threads=16,
    skip_bad=False,
):
  """Yields the batches of steps start_step, start_step + 1, ... without end.

  Args:
    dataset: from `load`.
    batch_size: of the global batch.
    seed: of the order and of the mirror images.
    start_step: the first step.
    rows: of the global batch, those of this process (`local_rows`); all when
      None.
    flips: whether half of the examples are mirrored.
    image: whether images are read.
    features: names of the encoders whose tokens are read; True is all.
    threads: that read and decode.
    skip_bad: a damaged record is told, counted and replaced by the next one
      of the data set, instead of ending the stream with DataError.

  A batch is a dict of host arrays: label int32 [b], moments float16
  [b h w 2c], image uint8 [b s s 3], features a tuple of bfloat16 [b n d].
  """
  if flips:
    manifests.check_flips(dataset.manifest)
  rows = tuple(range(batch_size) if rows is None else rows)
  size = max(c for c in range(1, CHUNK + 1) if len(rows) % c == 0)
  count = len(rows) // size
  read = _Replacing(dataset) if skip_bad else dataset.example
  read = functools.partial(read, image=image, features=features)
  source = _Chunks(read, len(dataset), batch_size, rows, size, seed, flips)
  stream = grain.MapDataset.source(source)[start_step * count :]
  options = grain.ReadOptions(threads, threads + count if threads else 0)
  stream = stream.to_iter_dataset(options).batch(count, batch_fn=_join)
  iterator = iter(stream)
  try:
    yield from iterator
  finally:
    iterator.close()


def on_device(batches, sharding):
  """Yields batches of `batches` as global arrays; closes them at its end."""
  with contextlib.closing(batches):
    for batch in batches:
      yield to_device(batch, sharding)


def to_device(batch, sharding):
  """Puts the rows of this process on its devices, as global arrays."""
  put = functools.partial(jax.make_array_from_process_local_data, sharding)
  return jax.tree.map(put, batch)


def prefetch(iterator, size=2):
  """Yields from an iterator that runs `size` items ahead in grain's own thread.

  An error of the iterator is raised where its item would have come. Closing
  the generator ends the thread and closes the iterator.
  """
  ahead = grain.experimental.ThreadPrefetchDatasetIterator(
      _Stateless(iterator), size
  )
  try:
    yield from ahead
  finally:
    ahead.close()
    if hasattr(iterator, 'close'):
      iterator.close()


class _Stateless:
  """An iterator as grain asks for it. Its position is kept as a step."""

  def __init__(self, iterator):
    self._iterator = iterator

  def __next__(self):
    return next(self._iterator)

  def get_state(self):
    return {}


@dataclasses.dataclass(frozen=True)
class _Chunks:
  """The rows of one process as a positioned source of `size` rows each."""

  read: Callable  # (index, flip=) -> example
  count: int  # records
  batch_size: int
  rows: tuple
  size: int
  seed: int
  flips: bool

  def __len__(self):
    return sys.maxsize // self.size

  def __getitem__(self, k):
    first = k * self.size
    examples = map(self._example, range(first, first + self.size))
    return _tree_map(np.stack, list(examples))

  def _example(self, k):
    step, row = divmod(k, len(self.rows))
    where = place(
        step * self.batch_size + self.rows[row],
        count=self.count,
        seed=self.seed,
        flips=self.flips,
    )
    return self.read(where.index, flip=where.flip)


class _Replacing:
  """Reads examples; in place of a damaged record the next one is taken."""

  def __init__(self, dataset):
    self._dataset, self._bad = dataset, set()

  def __call__(self, index, **wanted):
    while True:
      try:
        return self._dataset.example(index, **wanted)
      except errors.DataError as error:
        self._note(index, error)
        index = (index + 1) % len(self._dataset)

  def _note(self, index, error):
    if index in self._bad:
      return
    self._bad.add(index)
    if len(self._bad) > min(MAX_BAD, len(self._dataset) - 1):
      raise errors.DataError(
          f'{len(self._bad)} records are damaged, too many to pass over; the'
          f' last one: {error}'
      )
    logging.warning('passed over, %d so far: %s', len(self._bad), error)


def _join(chunks):
  return chunks[0] if len(chunks) == 1 else _tree_map(np.concatenate, chunks)


def _tree_map(merge, examples):
  return jax.tree.map(lambda *leaves: merge(leaves), *examples)


def _hash(*values):
  """Returns 32 bits of a hash of integers, the same on every machine."""
  data = struct.pack(f'<{len(values)}q', *values)
  return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), 'little')
