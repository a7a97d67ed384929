"""What a weight file holds, recognised before any part of it is used.

Files of torch.save hold anything: a state dict, a checkpoint around it, a list,
a tensor. Wrappers of modules put their name before each key: DataParallel
`module.`, torch.compile `_orig_mod.`, AveragedModel `module.` and `n_averaged`.
"""

from collections.abc import Mapping
import re

import numpy as np

from irepa_jax import errors

WRAPPERS = re.compile(r'^((module|_orig_mod)\.)+')
COUNTERS = ('n_averaged',)  # of AveragedModel, beside the weights


def mapping(content, what='the file'):
  """Returns a mapping whose keys are names; DataError says what it is else."""
  if not isinstance(content, Mapping):
    raise errors.DataError(
        f'{what} holds {kind(content)}; expected arrays by name'
    )
  strange = [key for key in content if not isinstance(key, str)]
  if strange:
    raise errors.DataError(
        f'{what} has the key {strange[0]!r}, {kind(strange[0])}; expected names'
    )
  return content


def arrays(content, what='the file'):
  """Returns a state dict by its bare names; DataError if it is none."""
  found = bare(mapping(content, what))
  if not found:
    raise errors.DataError(f'{what} is empty; expected arrays by name')
  for name, value in found.items():
    if not isinstance(value, np.ndarray):
      raise errors.DataError(
          f'{what} has {kind(value)} called {name!r}; expected an array'
      )
  return found


def bare(state_dict):
  """Returns a state dict without the names of wrappers before its keys.

  Raises DataError where two keys become one.
  """
  if not any(WRAPPERS.match(k) for k in state_dict if isinstance(k, str)):
    return state_dict
  names = {k: WRAPPERS.sub('', k) for k in state_dict if k not in COUNTERS}
  if len(set(names.values())) < len(names):
    raise errors.DataError(
        'some weights stand there twice, with and without module. or _orig_mod.'
    )
  return {name: state_dict[key] for key, name in names.items()}


def whole_number(value, what):
  """Returns an integer from 0 of a number or tensor; DataError otherwise."""
  number = np.asarray(value)
  right = number.size == 1 and number.dtype.kind in 'iuf'
  number = float(number.reshape(())) if right else -1
  if number < 0 or not number.is_integer():
    raise errors.DataError(f'{what} is {value!r:.40}; expected a whole number')
  return int(number)


def kind(value):
  """Names the type of a value for a person."""
  if isinstance(value, np.ndarray):
    return f'one array {value.dtype}{list(value.shape)}'
  if isinstance(value, Mapping):
    shown = ', '.join(sorted(map(str, value))[:3]) or 'nothing'
    return f'a dict of {shown}'
  if value is None:
    return 'nothing (None)'
  if isinstance(value, (list, tuple)):
    return f'a {type(value).__name__} of {len(value)}'
  return f'{type(value).__name__} {value!r:.40}'
