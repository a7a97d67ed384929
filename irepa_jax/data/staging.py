"""A data set in a bucket, copied once to the local disk of each host.

ArrayRecord reads local files, and the order of examples asks every host for
records of every shard; so a host copies the whole set before it starts, and
finds it there at the next start. Any address works whose package is installed
(gs:// needs gcsfs, s3:// s3fs). Copies lie in a folder named by the hash of the
manifest, below IREPA_DATA_CACHE or else the user's cache, so that another data
set at the same address is copied anew. Processes of one host share the work.
"""

import hashlib
import os
import pathlib
import shutil
import tempfile
import time

import fsspec
import jax
import tqdm

from irepa_jax import errors
from irepa_jax.data import manifest as manifests
from irepa_jax.data import records
from irepa_jax.distributed import processes
from irepa_jax.names import places

VARIABLE = 'IREPA_DATA_CACHE'
ATTEMPTS = 3
PAUSE_S = 2.0  # before another attempt


def is_remote(folder):
  """Whether a folder is an address such as gs://bucket/data."""
  return '://' in str(folder)


def local(folder):
  """Returns a local folder that holds a data set; itself where it is local.

  Raises DataError in one line where the address cannot be read or the disk has
  no room.
  """
  if not is_remote(folder):
    return folder
  remote, root = _open(str(folder))
  data = _read(remote, root, folder)
  copy = _place() / hashlib.sha256(data).hexdigest()[:16]
  copy.mkdir(parents=True, exist_ok=True)
  records.write_bytes(copy / manifests.NAME, data)
  manifest = manifests.read(copy)
  shards = [*manifest.shards, *manifest.flips]
  missing = [s for s in shards if not _there(copy, s)]
  _check_room(copy, sum(shard.size for shard in missing), folder)
  if missing:
    _fetch(remote, root, copy, missing)
  return copy


def _open(address):
  """Returns the file system of an address and the path there."""
  try:
    return fsspec.core.url_to_fs(address)
  except Exception as error:  # of whichever client: it is not there, no account
    raise errors.DataError(
        f'data set {address} cannot be opened: {_line(error)}'
    ) from error


def _read(remote, root, folder):
  try:
    return remote.cat_file(f'{root}/{manifests.NAME}')
  except FileNotFoundError as error:
    raise errors.DataError(
        f'no {manifests.NAME} under {folder}; copy a finished data set there,'
        ' with all of its files'
    ) from error
  except Exception as error:
    raise errors.DataError(
        f'data set {folder} cannot be read: {_line(error)}'
    ) from error


def _place():
  given = os.environ.get(VARIABLE)
  if given:
    places.try_folder(given, VARIABLE)
    return pathlib.Path(given)
  cache = places.cache() or pathlib.Path(tempfile.gettempdir(), 'irepa_jax')
  return cache / 'data'


def _there(copy, shard):
  path = copy / shard.name
  return path.is_file() and path.stat().st_size == shard.size


def _check_room(copy, needed, folder):
  free = shutil.disk_usage(copy).free
  if needed > free:
    raise errors.DataError(
        f'{copy} has {free / 1e9:.1f} GB free and {folder} needs'
        f' {needed / 1e9:.1f} GB more: {VARIABLE} names another folder'
    )


def _fetch(remote, root, copy, shards):
  """Copies shards; each process of a host begins with another one."""
  first = jax.process_index() * len(shards) // jax.process_count()
  total = sum(shard.size for shard in shards)
  with tqdm.tqdm(
      total=total,
      unit='B',
      unit_scale=True,
      desc='data to local disk',
      disable=not processes.is_first(),
  ) as bar:
    for shard in shards[first:] + shards[:first]:
      if not _there(copy, shard):  # another process may have it by now
        _copy(remote, f'{root}/{shard.name}', copy / shard.name, shard.size)
      bar.update(shard.size)


def _copy(remote, source, target, size):
  """Copies one file, whole or not at all; tries again a few times."""
  partial = target.with_name(f'{target.name}.{os.getpid()}.tmp')
  for attempt in range(1, ATTEMPTS + 1):
    try:
      remote.get_file(source, str(partial))
      found = partial.stat().st_size
      if found != size:
        raise OSError(f'{found} bytes came, the manifest says {size}')
      return records.commit(partial, target)
    except Exception as error:  # of whichever client: network, account, file
      partial.unlink(missing_ok=True)
      if attempt == ATTEMPTS or isinstance(error, FileNotFoundError):
        raise errors.DataError(
            f'shard {source} cannot be copied to {target.parent}:'
            f' {_line(error)}'
        ) from error
      time.sleep(PAUSE_S * attempt)


def _line(error):
  """Returns the first line of an error of another library, with its kind."""
  text = str(error).strip().split('\n')[0][:200]
  return f'{type(error).__name__}: {text}' if text else type(error).__name__
