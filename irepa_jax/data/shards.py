"""The bookkeeping of a preparation: which shards exist, and are they whole.

A source of n images is cut into spans of `shard_size`; a span becomes a shard
(two with flips) and, once that is on the disk, a side-car of the same name with
its checksum, statistics and skipped images. The side-car is the proof that a
shard is finished, so work resumes after any kill. Processes share a folder and
nothing else: process p of P writes every P-th span.
"""

import json
import pathlib
import tempfile
import time
from typing import NamedTuple

import numpy as np

from irepa_jax import errors
from irepa_jax.data import manifest as manifests
from irepa_jax.data import records
from irepa_jax.names import file_names

SKIPPED = 'skipped.txt'
POLL_S = 0.5
REMIND_S = 60.0


class Span(NamedTuple):
  """Positions start..stop-1 of the source, the `index`-th of `total`."""

  index: int
  total: int
  start: int
  stop: int


class Part(NamedTuple):
  """What the side-car of a shard says."""

  settings: dict  # of the preparation; another one cannot be continued
  shard: records.Shard
  flip: records.Shard | None
  labels: tuple  # smallest and largest; empty without records
  moments_shape: tuple
  features_shapes: tuple  # (n, d) of each encoder
  mean: tuple  # of z over the shard, per channel
  square: tuple  # of z**2
  enlarged: int  # images smaller than the crop
  skipped: tuple  # (position, name, reason)
  coloured: int = 0  # images whose colours the autoencoder drops


def plan(length, shard_size):
  """Cuts positions 0..length-1 into spans."""
  starts = range(0, length, shard_size)
  return [
      Span(k, len(starts), start, min(start + shard_size, length))
      for k, start in enumerate(starts)
  ]


def path(folder, span, kind='data', suffix=manifests.SUFFIX):
  """Returns FOLDER/data-00003-of-00313.array_record."""
  name = f'{kind}-{span.index:05d}-of-{span.total:05d}{suffix}'
  return pathlib.Path(folder) / name


def write_part(folder, span, part):
  """Writes the side-car of a finished shard."""
  fields = part._asdict()
  fields['shard'] = part.shard._asdict()
  fields['flip'] = part.flip and part.flip._asdict()
  data = json.dumps(fields).encode()
  records.write_bytes(path(folder, span, suffix='.json'), data)


def read_part(folder, span, settings):
  """Returns the Part of a span, None where it is not finished.

  Raises DataError where it was prepared with other settings.
  """
  part = _read(path(folder, span, suffix='.json'))
  if part:
    check_settings(folder, part.settings, settings)
  return part


def finished(folder, span, settings):
  """Returns the Part of a span whose shard has the bytes that were written."""
  part = read_part(folder, span, settings)
  if part is None:
    return None
  try:
    for shard in filter(None, (part.shard, part.flip)):
      records.check_hash(folder, shard)
  except errors.DataError:
    return None
  return part


def check_settings(folder, seen, wanted):
  """Raises DataError naming the settings in which two preparations differ."""
  differ = [
      f'{key}={seen.get(key)!r}, now {wanted.get(key)!r}'
      for key in sorted(seen.keys() | wanted.keys())
      if seen.get(key) != wanted.get(key)
  ]
  if differ:
    raise errors.DataError(
        f'{folder} holds a data set prepared with {"; ".join(differ)}: choose'
        ' another --out, or remove that folder'
    )


def check_writable(folder):
  """Makes a folder; raises UsageError where nothing can be written there."""
  try:
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise errors.UsageError(
        f'out {folder} is no folder to write to: {error.strerror}'
    ) from error


def check_folder(folder, settings):
  """Raises DataError where a folder holds another preparation."""
  folder = pathlib.Path(folder)
  if (folder / manifests.NAME).is_file():
    check_settings(folder, manifests.read(folder).settings, settings)
  for file in folder.glob('data-*.json'):
    seen = _read(file)
    if seen:
      check_settings(folder, seen.settings, settings)


def wait(folder, spans, settings, say=print):
  """Returns the Parts of all spans once every process has written its own."""
  parts = {}
  reminded = time.monotonic()
  while True:
    missing = [span for span in spans if span not in parts]
    for span in missing:
      part = read_part(folder, span, settings)
      if part is not None:
        parts[span] = part
    if len(parts) == len(spans):
      return [parts[span] for span in spans]
    if time.monotonic() - reminded > REMIND_S:
      reminded = time.monotonic()
      left = len(spans) - len(parts)
      say(f'waiting for {left} of {len(spans)} shards of other processes')
    time.sleep(POLL_S)


def wait_for_manifest(folder, manifest):
  """Returns once the first process has written this manifest."""
  file = pathlib.Path(folder) / manifests.NAME
  while not file.is_file() or manifests.read(folder).shards != manifest.shards:
    time.sleep(POLL_S)


def check_skipped(folder, parts, length, limit):
  """Writes skipped.txt; raises DataError above `limit`, a share of all."""
  path, shown = pathlib.Path(folder) / SKIPPED, file_names.shown
  skipped = [entry for part in parts for entry in part.skipped]
  if not skipped:
    return path.unlink(missing_ok=True)
  lines = [f'{shown(name)}\t{shown(reason)}\n' for _, name, reason in skipped]
  records.write_bytes(path, ''.join(lines).encode())
  if len(skipped) > limit * length:
    _, name, reason = skipped[0]
    raise errors.DataError(
        f'{len(skipped)} of {length} images cannot be read, more than'
        f' {limit:.2%} (listed in {path}); first: {name}: {reason}'
    )


def assemble(job, parts, *, codec, encoders):
  """Puts all Parts together to the manifest.

  Args:
    job: write.Job, whose settings and source the parts have in common.
    parts: of every span.
    codec: (name, sha256, bias or None, scale or None), or None.
    encoders: of (name, sha256).
  """
  kept = [part for part in parts if part.shard.count]
  if not kept:
    raise errors.DataError(f'no image could be read; see {job.out / SKIPPED}')
  mean, std = statistics(kept)
  name, sha256, bias, scale = codec or ('none', '', (), ())
  labels = [label for part in kept for label in part.labels]
  return manifests.Manifest(
      count=sum(part.shard.count for part in kept),
      image_size=job.image_size,
      image_format=job.image_format,
      num_classes=job.num_classes or max(labels) + 1,
      class_names=tuple(job.source.class_names),
      label_range=(min(labels), max(labels)),
      autoencoder=name,
      autoencoder_sha256=sha256,
      moments_shape=tuple(kept[0].moments_shape),
      latent_mean=_floats(mean),
      latent_std=_floats(std),
      bias=_floats(mean if bias is None else bias),
      scale=_floats(1 / np.where(std > 0, std, 1) if scale is None else scale),
      encoders=tuple(
          manifests.Features(*encoder, tuple(shape))
          for encoder, shape in zip(
              encoders, kept[0].features_shapes, strict=True
          )
      ),
      shards=tuple(part.shard for part in kept),
      flips=tuple(part.flip for part in kept if part.flip),
      skipped=sum(len(part.skipped) for part in parts),
      settings=job.settings,
      coloured=sum(part.coloured for part in kept),
  )


def statistics(parts):
  """Returns mean and standard deviation per channel of z over all records."""
  counts = np.array([part.shard.count for part in parts], np.float64)
  share = (counts / counts.sum())[:, None]
  mean = np.sum(share * [part.mean for part in parts], axis=0)
  square = np.sum(share * [part.square for part in parts], axis=0)
  return mean, np.sqrt(np.maximum(square - mean**2, 0))


def clean(folder):
  """Removes what killed preparations left behind."""
  for file in pathlib.Path(folder).glob('*.tmp'):
    file.unlink(missing_ok=True)


def _read(file):
  try:
    fields = json.loads(file.read_bytes())
    fields['shard'] = records.Shard(**fields['shard'])
    fields['flip'] = fields['flip'] and records.Shard(**fields['flip'])
    return Part(**fields)
  except (OSError, ValueError, TypeError, KeyError):
    return None


def _floats(values):
  return tuple(float(value) for value in values)
