"""Parameters to and from the official PyTorch layout, by name.

Submodules carry the official attribute names, so that one rule converts every
model: `blocks_3/attn/qkv/kernel` is `blocks.3.attn.qkv.weight`, transposed.
What does not follow the rule is a list of renames on the module, TORCH_NAMES.
"""

import collections
import functools
import re

import jax
import numpy as np

from irepa_jax import errors
from irepa_jax.weights import state_dicts

PROJECTORS = 'projectors.'
SHOWN = 3  # names in one error
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}


def param_shapes(module):
  """Returns the parameters of a module as shapes, without computing them."""
  return unflatten(_traced(module))


@functools.lru_cache(maxsize=64)
def _traced(module):
  """Flat shapes, kept: tracing the largest encoders takes seconds."""
  shapes = jax.eval_shape(
      module.init, jax.random.key(0), *module.example_inputs()
  )
  return flatten(shapes.get('params', {}))


def torch_names(module):
  """Returns {parameter path: official name} of a module."""
  renames = getattr(module, 'TORCH_NAMES', ())
  paths = flatten(param_shapes(module))
  return {path: _torch_name(path, renames) for path in paths}


def torch_shapes(module):
  """Returns {official name: shape in the official layout} of a module."""
  names = torch_names(module)
  shapes = flatten(param_shapes(module))
  return {names[p]: _torch_shape(p, v.shape) for p, v in shapes.items()}


def from_torch(module, state_dict, drop=()):
  """Converts a state dict into float32 parameters.

  drop: patterns of keys that the model leaves out on purpose. Raises DataError
  for keys that are missing, unknown or of another shape.
  """
  names = torch_names(module)
  wanted = torch_shapes(module)
  extra = {k for k in state_dict if not any(re.match(d, k) for d in drop)}
  wrong = _first('missing', wanted.keys() - state_dict.keys())
  wrong += _first('unknown', extra - wanted.keys())
  if not wrong:
    params, misshapen = _converted(names, wanted, state_dict)
    wrong = _first('of another shape', misshapen)
  if wrong:
    raise errors.DataError(
        f'weights do not fit: {"; ".join(wrong)}{_sizes(wanted, state_dict)}'
    )
  return unflatten(params)


def to_torch(module, params):
  """Converts parameters into the official layout, bit for bit."""
  flat = flatten(params)
  names = torch_names(module)
  return {names[p]: torch_array(p, np.asarray(flat[p])) for p in names}


def from_official(model, projector, state_dict):
  """Converts the weights of an official iREPA, REPA or SiT checkpoint.

  Returns {'model', 'projector'}; the projector is empty where it is None, as
  for sampling, or where the file has none. Older files name the layers of an
  MLP projector without `projection_layer`.
  """
  pairs = [(_current_name(k), v) for k, v in state_dicts.bare(state_dict).items()]
  heads = {k: v for k, v in pairs if k.startswith(PROJECTORS)}
  body = {k: v for k, v in pairs if k not in heads}
  params = {'model': from_torch(model, body), 'projector': {}}
  if projector and heads:
    params['projector'] = from_torch(projector, heads)
  return params


def to_official(model, projector, params):
  """Converts {'model', 'projector'} into one official state dict."""
  entries = to_torch(model, params['model'])
  if projector and params['projector']:
    entries |= to_torch(projector, params['projector'])
  return entries


def torch_array(path, array):
  """Returns an array in the official layout; `kernel` ends the path of a kernel."""
  return np.asarray(
      array.transpose(_to_torch_axes(path, array.ndim)), order='C'
  )


def flatten(tree, prefix=()):
  """Returns {path of keys: leaf} of nested dicts."""
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
      p: v
      for k, sub in tree.items()
      for p, v in flatten(sub, (*prefix, k)).items()
  }


def unflatten(leaves):
  """Returns the nested dicts of {path of keys: leaf}."""
  tree = {}
  for path, leaf in leaves.items():
    folder = tree
    for key in path[:-1]:
      folder = folder.setdefault(key, {})
    folder[path[-1]] = leaf
  return tree


def _current_name(name):
  name = name.removeprefix('net.')
  # The time embedding of h = t - r is called after r in zhuyu-cs/MeanFlow.
  name = re.sub(r'^r_embedder\.', 'h_embedder.', name)
  return re.sub(r'^(projectors\.\d+)\.(\d)', r'\1.projection_layer.\2', name)


def _torch_name(path, renames):
  parts = [re.sub(r'_(\d+)$', r'.\1', part) for part in path[:-1]]
  name = '.'.join([*parts, LEAVES.get(path[-1], path[-1])])
  for pattern, replacement in renames:
    name = re.sub(pattern, replacement, name)
  return name


def _converted(names, wanted, state_dict):
  """Returns the parameters by path, and a line for each of another shape."""
  params, misshapen = {}, []
  for path, name in names.items():
    array = np.asarray(state_dict[name])  # read once: it may lie on disk
    if array.shape == wanted[name]:
      params[path] = _from_torch(path, array)
    else:
      misshapen.append(f'{name} {array.shape} instead of {wanted[name]}')
  return params, misshapen


def _torch_shape(path, shape):
  return tuple(shape[axis] for axis in _to_torch_axes(path, len(shape)))


def _to_torch_axes(path, dimensions):
  """Returns the axes of an array in the order in which PyTorch has them."""
  if path[-1] != 'kernel':
    return range(dimensions)
  return {2: (1, 0), 4: (3, 2, 0, 1)}[dimensions]


def _from_torch(path, array):
  axes = np.argsort(_to_torch_axes(path, array.ndim))
  return np.asarray(array.transpose(axes), np.float32, order='C')


def _first(what, names):
  shown = ', '.join(sorted(names)[:SHOWN])
  return [f'{len(names)} {what} ({shown})'] if names else []


def _sizes(wanted, state_dict):
  """Tells two transformers apart, where that is what is wrong."""
  found = _size({k: np.shape(v) for k, v in state_dict.items()})
  model = _size(wanted)
  differ = found and model and found != model
  return f'. The file has {found}, the model {model}' if differ else ''


def _size(shapes):
  """Returns the number of blocks and the usual width of their vectors."""
  numbers = [re.search(r'\b(blocks|layers?)\.(\d+)\.', k) for k in shapes]
  blocks = 1 + max((int(n[2]) for n in numbers if n), default=-1)
  widths = collections.Counter(s[0] for s in shapes.values() if len(s) == 1)
  if not blocks or not widths:
    return ''
  return f'{blocks} blocks, {widths.most_common(1)[0][0]} wide'
