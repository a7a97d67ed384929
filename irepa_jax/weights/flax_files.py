"""Checkpoints of the official MeanFlow, whose layers wrap those of flax.

  net/blocks/layers_0/attn/qkv/_flax_linear/kernel   [i o]
  blocks.0.attn.qkv.weight                           [o i]

flax.training.checkpoints writes them: a folder of orbax, or, before flax 0.7,
one file of msgpack. Either holds a TrainState: `params`, `ema_params`, `step`
and the moments of the optimiser.

MeanFlow (arXiv 2505.13447), github.com/Gsunshine/meanflow.
"""

import pathlib
import re

import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp

from irepa_jax import errors
from irepa_jax.weights import convert

# Types of values in a msgpack file of flax, flax/serialization.py.
ARRAY, SCALAR = 1, 3
CHUNKED = '__msgpack_chunked_array__'
WRAPPERS = re.compile(r'_flax_\w+|net')
# Any of these files makes a folder one of orbax.
ORBAX = ('_METADATA', 'manifest.ocdbt', 'checkpoint')
MOMENTS = {'mu': 'exp_avg', 'nu': 'exp_avg_sq'}


def is_checkpoint(path):
  """Whether a path looks like one: a folder of orbax, or a name they give."""
  path = pathlib.Path(path)
  named = re.fullmatch(r'checkpoint_\d+', path.name) and path.is_file()
  return bool(named) or any((path / n).exists() for n in ORBAX)


def read(path):
  """Returns {'model', 'ema', 'opt', 'steps'} as PyTorch's trainers save it.

  Weights and moments by their official names; there is no `pos_embed`. Raises
  DataError for a file that is damaged or holds something else.
  """
  path = pathlib.Path(path)
  try:
    tree = _read_orbax(path) if path.is_dir() else _read_msgpack(path)
  except Exception as error:  # of a damaged file: whatever its parser raises
    raise errors.DataError(
        f'{path} is no checkpoint of flax, or damaged: {error}'
    ) from error
  missing = {'params', 'ema_params'} - set(tree)
  if missing:
    raise errors.DataError(
        f'{path} has {sorted(map(str, tree))}; a checkpoint of MeanFlow has'
        ' params and ema_params'
    )
  model = state_dict(tree['params'])
  return {
      'model': model,
      'ema': state_dict(tree['ema_params']),
      'opt': _optimiser(model, _adam(tree.get('opt_state'))),
      'steps': int(tree.get('step', 0)),
  }


def state_dict(params):
  """Returns arrays by official name, in the layout of PyTorch.

  params: nested dicts, or arrays by path with slashes.
  """
  flat = {
      tuple('/'.join(path).split('/')): np.asarray(array)
      for path, array in convert.flatten(params).items()
  }
  return {_name(p): convert.torch_array(p, a) for p, a in flat.items()}


def _name(path):
  parts = [p.removeprefix('layers_') for p in path[:-1]]
  parts = [p for p in parts if not WRAPPERS.fullmatch(p)]
  return '.'.join([*parts, convert.LEAVES.get(path[-1], path[-1])])


def _adam(opt_state):
  """Finds the state of Adam among those of a chain; None without."""
  if isinstance(opt_state, dict):
    if {'mu', 'nu', 'count'} <= set(opt_state):
      return opt_state
    opt_state = list(opt_state.values())
  if not isinstance(opt_state, list | tuple):
    return None
  return next(filter(None, map(_adam, opt_state)), None)


def _optimiser(model, adam):
  """Returns the moments as torch.optim.AdamW has them; None without."""
  if adam is None:
    return None
  named = {theirs: state_dict(adam[ours]) for ours, theirs in MOMENTS.items()}
  state = {
      i: {key: moments[name] for key, moments in named.items()}
      | {'step': int(adam['count'])}
      for i, name in enumerate(model)
  }
  return {'state': state}


def _read_orbax(path):
  with ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(path.absolute()).item_metadata.tree
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), metadata)
    return checkpointer.restore(path.absolute(), restore_args=whole)


def _read_msgpack(path):
  return _joined(
      msgpack.unpackb(
          path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=False
      )
  )


def _array(code, data):
  if code not in (ARRAY, SCALAR):
    raise ValueError(f'a value of type {code}')
  shape, dtype, values = msgpack.unpackb(data, raw=True)
  return np.frombuffer(values, np.dtype(dtype.decode())).reshape(shape)


def _joined(tree):
  """Puts arrays together that were cut into pieces of 1 GiB."""
  if not isinstance(tree, dict):
    return tree
  if CHUNKED not in tree:
    return {key: _joined(value) for key, value in tree.items()}
  ordered = lambda d: [d[str(i)] for i in range(len(d))]
  return np.concatenate(ordered(tree['chunks'])).reshape(ordered(tree['shape']))
