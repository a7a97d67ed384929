"""From the keys of a weight file to our names, exactly.

Every key of the file is used or listed as dropped on purpose; a key that is
missing, left over or of another shape is an error in the names of the file.
"""

from collections.abc import Mapping
import math
import re

import numpy as np

from irepa_jax import errors
from irepa_jax.encoders import layouts
from irepa_jax.encoders import positions
from irepa_jax.encoders import rotary
from irepa_jax.weights import convert
from irepa_jax.weights import state_dicts

SHOWN = 3  # keys named in an error
TABLE = 'pos_embed'
HALF_PRECISION = 1e-3
FIRST = 'blocks.{}.norm1.weight'  # tells depth and width
MANY = 100  # blocks; no encoder has as many


class Renamed(Mapping):
  """A mapping under other keys; large files are read entry by entry."""

  def __init__(self, tensors, keys):
    self.tensors, self.keys_by_name = tensors, keys

  def __getitem__(self, name):
    return self.tensors[self.keys_by_name[name]]

  def __iter__(self):
    return iter(self.keys_by_name)

  def __len__(self):
    return len(self.keys_by_name)

  def __contains__(self, name):
    return name in self.keys_by_name

  def without(self, names):
    """Returns the mapping without some keys."""
    kept = {k: v for k, v in self.keys_by_name.items() if k not in names}
    return Renamed(self.tensors, kept)


def parameters(spec, module, state_dict):
  """Returns the parameters of a module from the arrays of a weight file.

  state_dict: arrays by key, as read from a file, wrapped in outer keys or not.
  Raises DataError when keys or shapes are not those of one of spec.layouts.
  """
  shapes = official_shapes(module)
  resized = hasattr(module, 'table_prefix') and TABLE in shapes
  if resized:
    shapes[TABLE] = (1, -1, module.width)
  tensors = unpack(spec.layouts, state_dict, shapes, _fresh(module))
  bad = [k for k, v in tensors.items() if not np.isfinite(np.sum(v))]
  if bad:
    raise errors.DataError(f'weights are not finite: {", ".join(bad[:SHOWN])}')
  if resized:
    tensors[TABLE] = positions.resample(
        tensors[TABLE],
        module.table_prefix,
        module.grid,
        spec.table,
        spec.table_via,
    )
  return convert.from_torch(module, tensors)


def official_shapes(module):
  """Returns our names with the shapes that they have in a torch file."""
  shapes = convert.flatten(convert.param_shapes(module))
  names = convert.torch_names(module)
  return {names[p]: _torch_shape(p, s.shape) for p, s in shapes.items()}


def unpack(names, state_dict, shapes, fresh):
  """Returns the tensors of a file by our names, in `shapes` (-1: any size)."""
  layout, tensors, prefix = recognise(names, state_dict)
  sources = {name: _source(layout, name) for name in shapes}
  tensors = _without_constants(layout, tensors)
  find = lambda key, shape, loose: _entry(tensors, prefix + key, shape, loose)
  try:
    _check_keys(layout, prefix, tensors, sources)
    return {
        name: _value(layout, name, sources[name], shape, find, fresh)
        for name, shape in shapes.items()
    }
  except errors.DataError as error:
    hint = _other_size(layout, prefix, tensors, shapes)
    raise errors.DataError(f'{error}{hint}') from None


def recognise(names, state_dict):
  """Returns the layout that fits, the unwrapped tensors and their prefix."""
  state_dict = state_dicts.mapping(state_dict)
  for layout in (layouts.LAYOUTS[name] for name in names):
    tensors = _repair(_unwrap(state_dict, layout.wrappers), layout.repairs)
    for prefix in layout.prefixes:
      keys = [k[len(prefix) :] for k in tensors if k.startswith(prefix)]
      if any(re.search(layout.marker, key) for key in keys):
        return layout, tensors, prefix
  unwrapped = _bare(state_dict)
  if unwrapped.keys() != state_dict.keys():
    return recognise(names, unwrapped)
  seen = ', '.join(sorted(map(str, state_dict))[:SHOWN])
  raise errors.DataError(
      f'these are not weights in the layout {" or ".join(names)}; the first'
      f' keys are {seen or "none"}'
  )


def _unwrap(state_dict, wrappers):
  for key in wrappers:
    if isinstance(state_dict.get(key), Mapping):
      return _unwrap(state_dict[key], wrappers)
  return state_dict


def _bare(content):
  """Returns a file without wrappers of torch.nn before its keys, at any depth."""
  for value in content.values():
    if isinstance(value, Mapping) and _has_wrapper(value):
      return state_dicts.bare(value)
  return state_dicts.bare(content)


def _has_wrapper(content):
  return any(state_dicts.WRAPPERS.match(str(key)) for key in content)


def _repair(tensors, repairs):
  """Returns the tensors by their repaired keys, none of them read yet."""
  keys = {key: key for key in tensors}
  for pattern, replacement in repairs:
    keys = {re.sub(pattern, replacement, k): v for k, v in keys.items()}
  return Renamed(tensors, keys)


def _source(layout, name):
  for pattern, replacement in layout.rules:
    if re.search(pattern, name):
      return re.sub(pattern, replacement, name)
  return name


def _keys(source):
  parts = [k for part in source.split('|') for k in part.split('*')]
  return [key for key in parts if key not in ('0', '=')]


def fits(spec, state_dict):
  """Tells whether a file has the keys and the size of an encoder."""
  module = spec.module
  wanted = getattr(module, 'depth', 0), getattr(module, 'inner', module.width)
  try:
    layout, tensors, prefix = recognise(spec.layouts, state_dict)
    if _blocks(layout, prefix, tensors) != wanted:
      return False
    sources = {name: _source(layout, name) for name in official_shapes(module)}
    _check_keys(layout, prefix, _without_constants(layout, tensors), sources)
  except errors.DataError:
    return False
  return True


def _other_size(layout, prefix, tensors, shapes):
  """Says so when the blocks of a file are those of another size."""
  name = FIRST.format(0)
  found = _blocks(layout, prefix, tensors)
  if name not in shapes or not found[0]:
    return ''
  ours = [k for k in map(FIRST.format, range(MANY)) if k in shapes]
  wanted = len(ours), *shapes[name]
  if found == wanted:
    return ''
  text = '{} blocks of width {}'
  return f'; the file has {text.format(*found)}, wanted {text.format(*wanted)}'


def _blocks(layout, prefix, tensors):
  """Returns how many blocks a file has, and their width; zeros for none."""
  names = map(FIRST.format, range(MANY))
  keys = [prefix + _source(layout, name) for name in names]
  found = [key for key in keys if key in tensors]
  return (len(found), np.size(tensors[found[0]])) if found else (0, 0)


def _without_constants(layout, tensors):
  """Drops entries that hold values which the code has, if they are equal."""
  held = [
      (key, wanted)
      for pattern, wanted in layout.constants
      for key in tensors
      if re.search(pattern, key)
  ]
  for key, wanted in held:
    found = np.ravel(tensors[key])
    if not np.allclose(found, wanted, atol=HALF_PRECISION):
      raise errors.DataError(f'{key} is {found}, not {wanted}')
  return tensors.without({key for key, _ in held})


def _check_keys(layout, prefix, tensors, sources):
  wanted = {prefix + k for source in sources.values() for k in _keys(source)}
  unused = lambda key: any(re.search(pattern, key) for pattern in layout.drop)
  missing = sorted(wanted - set(tensors))
  extra = sorted(k for k in set(tensors) - wanted if not unused(k))
  for what, keys in (('missing', missing), ('unknown', extra)):
    if keys:
      more = f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''
      raise errors.DataError(f'{what} weights: {", ".join(keys[:SHOWN])}{more}')


def _value(layout, name, source, shape, find, fresh):
  if source == '=':
    return fresh(name, shape)
  loose = any(re.search(pattern, name) for pattern in layout.reshaped)
  parts = source.split('|')
  if len(parts) > 1:
    shape = (shape[0] // len(parts), *shape[1:])
  arrays = []
  for part in parts:
    if part == '0':
      arrays.append(np.zeros(shape, np.float32))
    else:
      factors = [find(key, shape, loose) for key in part.split('*')]
      arrays.append(math.prod(factors[1:], start=factors[0]))
  return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _entry(tensors, key, shape, loose):
  """Returns one tensor; raises DataError unless its shape is the right one."""
  array = tensors[key]
  if not hasattr(array, 'shape'):
    raise errors.DataError(f'{key} is {state_dicts.kind(array)}, no array')
  found = np.shape(array)
  sized = len(shape) == len(found) and all(
      want in (-1, have) for want, have in zip(shape, found, strict=True)
  )
  step = math.prod(s for s in shape if s != -1)
  packed = loose and np.size(array) % step == 0
  packed = packed and (-1 in shape or np.size(array) == step)
  if not (sized or packed):
    text = str(tuple(shape)).replace('-1', 'n')
    raise errors.DataError(
        f'{key} has shape {tuple(np.shape(array))}, not {text}'
    )
  return np.reshape(array, shape)


def _fresh(module):
  """Returns f(name, shape): what a parameter is that no file holds."""

  def fresh(name, shape):
    if name == 'rope_embed.periods':
      width = module.width // module.heads
      return rotary.dinov3_periods(width, module.rope_periods_dtype)
    return np.zeros(shape, np.float32)  # biases

  return fresh


def _torch_shape(path, shape):
  if path[-1] == 'kernel':
    return (*shape[:-3:-1], *shape[:-2])
  return shape
