"""What a weight file holds, as lines of text."""

from collections.abc import Mapping

import numpy as np

from irepa_jax.weights import files

SHOWN = 40  # keys of a section


def describe(source):
  """Yields lines: size and hash of a path or hub id, and what the file holds."""
  path = files.fetch(source)
  content = files.read(path)
  if path.is_file():
    yield f'{path}: {path.stat().st_size:,} bytes, sha256 {files.sha256(path)}'
  yield from lines(content)


def lines(content, prefix=''):
  """Yields a line for each array by name, then for each section by name."""
  if not isinstance(content, Mapping):
    content = {'': content} if isinstance(content, np.ndarray) else content
    if not isinstance(content, (dict, list, tuple)):
      yield f'{prefix or "file"}: {content!r}'[:200]
      return
    if not isinstance(content, dict):
      content = {str(i): value for i, value in enumerate(content)}
  arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray)}
  if arrays:
    count = sum(v.size for v in arrays.values())
    yield f'{prefix or "state dict"}: {len(arrays)} arrays, {count:,} elements'
  for name, value in list(arrays.items())[:SHOWN]:
    yield f'  {name}  {value.dtype}{list(value.shape)}'
  if len(arrays) > SHOWN:
    yield f'  ... and {len(arrays) - SHOWN} more'
  for name, value in content.items():
    if isinstance(value, dict):
      yield from lines(value, f'{prefix}/{name}' if prefix else str(name))
    elif name not in arrays:
      yield f'{prefix + "/" if prefix else ""}{name}: {value!r}'[:200]
