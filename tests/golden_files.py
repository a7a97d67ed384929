"""Reads the oracles in tests/golden."""

import json
import pathlib
import tarfile

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'


def load(name):
  """Returns the arrays of golden/NAME.npz; `meta` as a dict."""
  with np.load(FOLDER / f'{name}.npz') as file:
    arrays = {key: file[key] for key in file.files}
  if 'meta' in arrays:
    arrays['meta'] = json.loads(str(arrays['meta']))
  return arrays


def load_json(name):
  """Returns golden/NAME.json."""
  return json.loads((FOLDER / f'{name}.json').read_text())


def unpack(name, folder):
  """Unpacks golden/NAME.tar.xz into a folder."""
  with tarfile.open(FOLDER / f'{name}.tar.xz') as archive:
    archive.extractall(folder, filter='data')


def subset(arrays, prefix):
  """Returns the entries below PREFIX/ with the prefix removed."""
  start = prefix.rstrip('/') + '/'
  return {k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)}
