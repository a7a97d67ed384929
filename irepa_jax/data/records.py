"""ArrayRecord shards of msgpack records, written whole or not at all.

A record is {'label': int, 'moments': bytes, 'image': bytes, 'features_0':
bytes, ...}: moments are float16 [h w 2c] (mean | std) and features bfloat16
[n d], both in C order with the shapes that the manifest states; the image is a
JPEG or PNG file. What a data set does not keep is absent from its records.

ArrayRecord checks a hash of every chunk it reads, so a flipped bit is never
silent; the errors raised here add the shard and the record.
"""

import bisect
import contextlib
import hashlib
import itertools
import os
import pathlib
import threading
from typing import NamedTuple

from array_record.python import array_record_module
import ml_dtypes
import msgpack
import numpy as np

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.names import file_names

MOMENTS_DTYPE = np.dtype(np.float16)
FEATURES_DTYPE = np.dtype(ml_dtypes.bfloat16)
WRITE_OPTIONS = 'group_size:1,uncompressed'  # one record is one read
READ_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'  # random access
MAGIC = b'\x83\xafp\xd1'  # of the Riegeli format


class Shard(NamedTuple):
  """A finished file of records."""

  name: str
  count: int  # records
  size: int  # bytes
  sha256: str


def pack(label, *, moments=None, image=b'', features=()):
  """Returns the bytes of one record."""
  record = {'label': int(label)}
  if moments is not None:
    record['moments'] = np.asarray(moments, MOMENTS_DTYPE).tobytes()
  if image:
    record['image'] = image
  for k, tokens in enumerate(features):
    record[f'features_{k}'] = np.asarray(tokens, FEATURES_DTYPE).tobytes()
  return msgpack.packb(record)


@contextlib.contextmanager
def writer(path):
  """Yields a function that appends a record; the file appears when all is in.

  It is written under another name, flushed to the disk and renamed, so that a
  kill at any moment leaves either no file or a whole one.
  """
  path = pathlib.Path(path)
  unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  shard = array_record_module.ArrayRecordWriter(_plain(unfinished), WRITE_OPTIONS)
  try:
    yield shard.write
    shard.close()
  except BaseException:
    unfinished.unlink(missing_ok=True)
    raise
  commit(unfinished, path)


def write_bytes(path, data):
  """Writes a small file whole or not at all."""
  path = pathlib.Path(path)
  unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  unfinished.write_bytes(data)
  commit(unfinished, path)


def commit(unfinished, path):
  """Flushes a file to the disk and gives it its name."""
  with open(unfinished, 'rb') as file:
    os.fsync(file.fileno())
  os.replace(unfinished, path)


def describe(path):
  """Reads a finished shard back and returns its Shard."""
  path = pathlib.Path(path)
  count = _open(path).num_records()
  return Shard(path.name, count, path.stat().st_size, sha256(path))


def sha256(path):
  """Returns the SHA-256 of a file in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def check_size(folder, shard):
  """Raises DataError where a shard is missing or has another size."""
  path = pathlib.Path(folder) / shard.name
  if not path.is_file():
    raise errors.DataError(f'shard {path} is missing; prepare or copy it again')
  size = path.stat().st_size
  if size != shard.size:
    with open(path, 'rb') as file:
      look = _look(file.read(48))
    raise errors.DataError(
        f'shard {path} has {size} bytes, the manifest says {shard.size}; {look}'
    )


def check_hash(folder, shard):
  """Raises DataError where the bytes of a shard are not those written."""
  check_size(folder, shard)
  path = pathlib.Path(folder) / shard.name
  seen = sha256(path)
  if seen != shard.sha256:
    raise errors.DataError(
        f'shard {path} is damaged: its sha256 is {seen[:16]}, the manifest says'
        f' {shard.sha256[:16]}; prepare or copy it again'
    )


class Records:
  """The records of several shards by one index, for many threads at once."""

  def __init__(self, folder, shards):
    self.folder = pathlib.Path(folder)
    self.shards = tuple(shards)
    self._ends = list(itertools.accumulate(s.count for s in self.shards))
    self._readers = [None] * len(self.shards)
    self._lock = threading.Lock()

  def __len__(self):
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index):
    """Returns the record as a dict of the values that were packed."""
    k, i = self._locate(index)
    try:
      return msgpack.unpackb(self._reader(k).read([i])[0])
    except (RuntimeError, ValueError, IndexError) as error:
      raise errors.DataError(
          f'{self.where(index)}: {_short(error)}; prepare or copy this shard'
          ' again (its sha256 is in manifest.json)'
      ) from error

  def where(self, index):
    """Returns the shard and record of an index, in words."""
    k, i = self._locate(index)
    return f'shard {self.folder / self.shards[k].name} record {i}'

  def close(self):
    """Closes the files."""
    for reader in filter(None, self._readers):
      reader.close()

  def _locate(self, index):
    k = bisect.bisect_right(self._ends, index)
    return k, index - (self._ends[k] - self.shards[k].count)

  def _reader(self, k):
    if self._readers[k] is None:
      with self._lock:
        if self._readers[k] is None:
          self._readers[k] = self._checked(k)
    return self._readers[k]

  def _checked(self, k):
    shard = self.shards[k]
    reader = _open(self.folder / shard.name)
    if reader.num_records() != shard.count:
      raise RuntimeError(
          f'{reader.num_records()} records, the manifest says {shard.count}'
      )
    return reader


def moments(record, shape):
  """Returns the moments of a record, float16 [h w 2c]."""
  return _array(record['moments'], MOMENTS_DTYPE, shape)


def features(record, k, shape):
  """Returns the tokens of the k-th cached encoder, bfloat16 [n d]."""
  return _array(record[f'features_{k}'], FEATURES_DTYPE, shape)


def _look(data):
  if data.startswith(MAGIC):
    return 'its copy was cut short or is another one'
  return images.head(data)


def _array(data, dtype, shape):
  return np.frombuffer(data, dtype).reshape(shape)


def _open(path):
  return array_record_module.ArrayRecordReader(_plain(path), READ_OPTIONS)


def _plain(path):
  """Returns a path as ArrayRecord takes it, which wants UTF-8."""
  return str(file_names.plain(path.parent) / path.name)


def _short(error):
  """The first sentence of an ArrayRecord error, without its stack."""
  return str(error).split(';')[0].split('\n')[0].removesuffix('.')
