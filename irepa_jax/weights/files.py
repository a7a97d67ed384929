"""Weight files: found by path or hub id, read without PyTorch, written for it.

  read(path)      .safetensors, *.safetensors.index.json, .pt, .pth, .bin ...,
                  and checkpoints of flax, as folder or file
  fetch(source)   a local path, a folder, or a hub id 'org/name[:file]'

A file whose published SHA-256 is known, from its name or from the hub's cache,
is compared with it: no format notices a flipped bit by itself.
Half-precision arrays are widened to float32. Files of PyTorch are pickles;
torch_files.py opens them without running any of their code.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
import re

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from irepa_jax import errors
from irepa_jax.names import file_names
from irepa_jax.weights import flax_files
from irepa_jax.weights import hub
from irepa_jax.weights import torch_files

INDEX = '.safetensors.index.json'
SUFFIXES = ('.safetensors', '.pt', '.pth', '.bin', '.ckpt', '.tar')
LFS = b'version https://git-lfs'
# PyTorch's hub ends names with the start of the SHA-256: eight digits, by which
# a number of steps is not meant, so one of them has to be a letter.
HUB_NAME = re.compile(r'-(?=\d*[a-f])([\da-f]{8})\.pth$')


def read(path):
  """Returns the arrays of a weight file by name; nested for checkpoints.

  Raises DataError, in one line, for a file that is missing, damaged, not what
  its name says, or that holds more than arrays and plain values.
  """
  path = pathlib.Path(path)
  if flax_files.is_checkpoint(path):
    return flax_files.read(path)
  if not path.is_file():
    raise errors.DataError(f'weight file {path} not found')
  if not path.name.endswith((INDEX, *SUFFIXES)):
    raise errors.DataError(
        f'weight file {path} has the suffix {path.suffix!r};'
        f' {", ".join((*SUFFIXES, INDEX))} can be read'
    )
  try:
    content = _reader(path)(path)
  except errors.DataError as error:
    raise errors.DataError(f'{path}: {error}') from error
  except Exception as error:  # of a damaged file: whatever its parser raises
    raise errors.DataError(f'{path} ({_looks_like(path)}): {error}') from error
  _verify(path)
  return content


def write_safetensors(path, tensors):
  """Writes arrays by name; the file appears when it is whole."""
  arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  metadata = {'format': 'pt'}  # readers of the hub ask for it
  save = lambda p: safetensors_numpy.save_file(arrays, _plain(p), metadata)
  _whole(path, save)


def write_torch(path, tree):
  """Writes a nested dict of arrays as torch.load(weights_only=True) reads it.

  The file appears when it is whole.
  """
  _whole(path, lambda p: torch_files.write(p, tree))


def fetch(source, filename=None):
  """Returns a local path for a path, a folder or a hub id 'org/name[:file]'.

  filename: the file to take from a folder or repository, or several of which
  the first that exists is taken. Raises DataError in one line when it cannot be
  had: not found, no network, or a licence that has to be accepted first.
  """
  names = (filename,) if isinstance(filename, str) else filename
  local = pathlib.Path(source)
  if local.is_file() or flax_files.is_checkpoint(local):
    return local
  if local.is_dir():
    return _inside(local, names or ())
  if str(source).startswith(('http://', 'https://')):
    raise errors.DataError(
        f'{source} is no hub id: download it, and give the path of the file'
    )
  repository, _, named = str(source).partition(':')
  if repository.count('/') != 1 or repository.endswith(SUFFIXES):
    raise errors.DataError(
        f'weights {str(source)!r}: no such file, and no hub id org/name[:file]'
    )
  return hub.fetch(repository, (named,) if named else names or hub.NAMES)


def sha256(path):
  """Returns the SHA-256 of a file in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


class Tensors(Mapping):
  """The arrays of safetensors files, each read when it is asked for."""

  def __init__(self, files):
    self.files = files  # array name -> open file

  def __getitem__(self, name):
    array = self.files[name].get_tensor(name)
    half = array.dtype in (np.float16, ml_dtypes.bfloat16)
    return array.astype(np.float32) if half else array

  def __iter__(self):
    return iter(self.files)

  def __len__(self):
    return len(self.files)


def _reader(path):
  if path.name.endswith(INDEX):
    return _read_sharded
  if path.suffix == '.safetensors':
    return _read_safetensors
  return torch_files.read


def _verify(path):
  """Raises DataError if the file is not the one that was published."""
  wanted = _published_digest(path)
  seen = sha256(path) if wanted else ''
  if wanted and not seen.startswith(wanted):
    raise errors.DataError(
        f'{path} is damaged: its SHA-256 starts with {seen[:8]}, published was'
        f' {wanted[:8]} ({path.stat().st_size} bytes); download it again'
    )


def _published_digest(path):
  """Returns the published SHA-256 or its start, in hexadecimal; or None."""
  blob = path.resolve()  # the hub's cache has links to files named so
  if blob.parent.name == 'blobs' and re.fullmatch(r'[\da-f]{64}', blob.name):
    return blob.name
  named = HUB_NAME.search(path.name)
  return named and named[1]


def _read_safetensors(path):
  file = safetensors.safe_open(str(file_names.plain(path)), 'np')
  return Tensors(dict.fromkeys(file.keys(), file))


def _read_sharded(path):
  index = json.loads(path.read_text())['weight_map']
  files = {}
  for name in sorted(set(index.values())):
    files |= read(path.parent / name).files
  missing = sorted(set(index) - set(files))
  if missing:
    raise errors.DataError(f'its shards lack {", ".join(missing[:3])}')
  return Tensors(files)


def _inside(folder, names):
  found = [folder / n for n in names if (folder / n).is_file()]
  found = found[:1] or sorted(
      p for p in folder.iterdir() if p.name.endswith((INDEX, *SUFFIXES))
  )
  indices = [p for p in found if p.name.endswith(INDEX)]
  found = indices or found
  if len(found) != 1:
    shown = ', '.join(p.name for p in found[:3]) or 'none'
    raise errors.DataError(
        f'{folder} should hold one weight file or index, or {names}: {shown};'
        ' give the path of the file'
    )
  return found[0]


def _whole(path, write):
  path = pathlib.Path(file_names.check(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.part')
  try:
    write(temporary)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _plain(path):
  """Returns a path to write to; its own name has to be UTF-8."""
  return file_names.plain(path.parent) / path.name


def _looks_like(path):
  with open(path, 'rb') as file:
    head = file.read(64)
  size = f'{path.stat().st_size} bytes'
  if head.startswith(LFS):
    return f'{size}, a git-lfs pointer: run git lfs pull'
  if head.lstrip().lower().startswith((b'<!doctype', b'<html')):
    return f'{size}, a web page instead of the file'
  return f'{size}, truncated or damaged'
