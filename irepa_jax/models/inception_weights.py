"""Weights of the 2015 Inception, from the files in which they circulate.

  *.pth  a state dict of pytorch-fid or torch-fidelity
  *.pb   the TensorFlow graph itself, classify_image_graph_def.pb
  *.safetensors with the names of the state dict

All hold the same numbers. Every .pth of them carries the start of its SHA-256
in its name, which weights.py verifies; an evaluation records the whole of it.
"""

import os
import pathlib
import tempfile
import urllib.request

from irepa_jax import errors
from irepa_jax.models import graphdef
from irepa_jax.models import inception
from irepa_jax.names import places
from irepa_jax.weights import convert
from irepa_jax.weights import files
from irepa_jax.weights import state_dicts

PUBLISHED = (
    'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth'
)
DROPPED = (r'.*num_batches_tracked$',)
GRAPH_LEAVES = {
    'conv2d_params': 'conv.weight',
    'batchnorm/gamma': 'bn.weight',
    'batchnorm/beta': 'bn.bias',
    'batchnorm/moving_mean': 'bn.running_mean',
    'batchnorm/moving_variance': 'bn.running_var',
}
OIHW = (3, 2, 0, 1)  # from HWIO


def load(source=None):
  """Reads parameters from a path or hub id; default: the published file."""
  path = fetch(source)
  if path.suffix == '.pb':
    return from_torch(from_graph(graphdef.read_constants(path)))
  return from_torch(files.read(path))


def fetch(source=None):
  """Returns the local weight file; the published one is downloaded once."""
  return files.fetch(source) if source else _download(PUBLISHED)


def from_torch(state_dict):
  """Converts a state dict of pytorch-fid or torch-fidelity, strictly."""
  arrays = state_dicts.arrays(state_dict)
  return convert.from_torch(inception.Inception(), arrays, drop=DROPPED)


def from_graph(constants):
  """Renames and transposes a TensorFlow graph's constants into a state dict."""
  names = {
      f'{node}/{leaf}': f'{name}.{key}'
      for node, name in graph_names().items()
      for leaf, key in GRAPH_LEAVES.items()
  }
  names |= {'softmax/weights': 'fc.weight', 'softmax/biases': 'fc.bias'}
  missing = sorted(set(names) - set(constants))
  if missing:
    raise errors.DataError(
        f'not the 2015 Inception: {len(missing)} of its {len(names)} weights'
        f' are missing from the graph ({", ".join(missing[:3])})'
    )
  axes = lambda array: OIHW if array.ndim == 4 else None
  arrays = {name: constants[node] for node, name in names.items()}
  return {name: a.transpose(axes(a)) for name, a in arrays.items()}


def graph_names():
  """Returns {node of the 2015 graph: name here} of every convolution.

  The graph counts blocks (mixed, mixed_1 ...), within a block the chains of
  convolutions (tower, tower_1 ...; a lone convolution needs no tower), within a
  chain the convolutions (conv, conv_1 ...); a fork is called mixed again.
  """
  stem = enumerate(inception.STEM)
  names = {count('conv', i): name for i, (name, *_) in stem}
  for i, (block, branches) in enumerate(inception.BLOCKS.items()):
    towers = 0
    for branch, chain in branches.items():
      folder = count('mixed', i)
      if len(chain) > 1 or branch == 'branch_pool':
        folder = f'{folder}/{count("tower", towers)}'
        towers += 1
      for j, _ in enumerate(chain):
        units = inception.units(branch, chain, j)
        forked = len(units) > 1
        for k, (unit, *_) in enumerate(units):
          node = f'mixed/{count("conv", k)}' if forked else count('conv', j)
          names[f'{folder}/{node}'] = f'{block}.{unit}'
  return names


def count(word, i):
  """Numbers as TensorFlow does: word, word_1, word_2 ..."""
  return f'{word}_{i}' if i else word


def _download(url):
  """Returns the cached file of an address, fetched if it is not there."""
  folder = places.cache() or pathlib.Path(tempfile.mkdtemp(prefix='irepa_jax'))
  path = folder / url.rsplit('/', 1)[1]
  if path.is_file():
    return path
  partial = path.with_suffix(f'.{os.getpid()}.part')
  try:
    urllib.request.urlretrieve(url, partial)
  except OSError as error:
    raise errors.DataError(
        f'cannot download {url} ({error}); fetch it elsewhere and give its path'
    ) from error
  partial.replace(path)
  return path
