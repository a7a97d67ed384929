"""Whether a manifest can be true, before any of its files is opened.

A manifest is written by `prepare` and travels with the data; a hand or a disk
may have changed it. Each rule names a field, the value seen and what it has to
be.
"""

import math

from irepa_jax import errors

FORMATS = 'jpeg', 'png', 'none'
PER_CHANNEL = 'latent_mean', 'latent_std', 'bias', 'scale'


def check(manifest, path):
  """Raises DataError for a manifest that no data set can have."""
  for field, holds, wanted in _rules(manifest):
    if not holds:
      value = str(getattr(manifest, field))
      raise errors.DataError(
          f'{path}: {field} is {value[:80]}; it must be {wanted}'
      )


def _rules(m):
  """Yields (field, whether it holds, what it must be), the first cause first."""
  for field in ('shards', 'flips'):
    shards = getattr(m, field)
    yield field, all(map(_is_shard, shards)), (
        'a list of shards, each with the name of a file in the same folder'
    )
  yield 'shards', len(m.shards) > 0, 'at least one shard'
  total = sum(shard.count for shard in m.shards)
  yield 'count', _whole(m.count, 1) and m.count == total, (
      f'{total}, the number of records in its shards'
  )
  mirrored = sum(shard.count for shard in m.flips)
  yield 'flips', mirrored in (0, total), f'none, or shards of {total} records'
  yield 'image_size', _whole(m.image_size, 1), 'a number of pixels'
  yield 'image_format', m.image_format in FORMATS, f'one of {FORMATS}'
  yield 'num_classes', _whole(m.num_classes, 1), 'a number of classes'
  yield 'class_names', _words(m.class_names), 'a list of names, or empty'
  yield 'label_range', _wholes(m.label_range, 2) and (
      m.label_range[0] <= m.label_range[1]
  ), 'the smallest and the largest label'
  for field in ('autoencoder', 'autoencoder_sha256'):
    yield field, isinstance(getattr(m, field), str), 'a text'
  shape = m.moments_shape
  yield 'moments_shape', shape == () or (
      _wholes(shape, 3) and min(shape) > 0 and shape[2] % 2 == 0
  ), 'empty, or height, width and twice the channels'
  channels = shape[2] // 2 if shape else 0
  for field in PER_CHANNEL:
    values = getattr(m, field)
    yield field, _numbers(values) and len(values) == channels, (
        f'{channels} finite numbers, one for each channel'
    )
  yield 'encoders', all(
      isinstance(e.name, str) and isinstance(e.sha256, str)
      and _wholes(e.shape, 2) for e in m.encoders
  ), 'a list of encoders with the shape of their tokens'  # fmt: skip


def _is_shard(shard):
  name = shard.name
  inside = isinstance(name, str) and name not in ('', '.', '..')
  inside = inside and not any(c in name for c in '/\\\0')
  counts = _whole(shard.count) and _whole(shard.size)
  return inside and counts and isinstance(shard.sha256, str)


def _whole(value, least=0):
  return type(value) is int and value >= least


def _wholes(values, count):
  """Whether these are so many whole numbers."""
  return (
      isinstance(values, tuple)
      and len(values) == count
      and all(type(value) is int for value in values)
  )


def _numbers(values):
  return isinstance(values, tuple) and all(
      type(value) in (int, float) and math.isfinite(value) for value in values
  )


def _words(values):
  return isinstance(values, tuple) and all(
      isinstance(value, str) for value in values
  )
