"""Encoders by name.

A name has three fields, TYPE-ANYTHING-CONFIG, as in the released iREPA code:
dinov2-vit-b. The type is a family, the config one of its sizes, the middle is
custom. A name with a colon, package.module:attribute, is a user's own encoder:
a Spec, or a function from images [b h w 3] to tokens [b n d].
"""

import dataclasses
import difflib
import importlib

from irepa_jax import errors
from irepa_jax.encoders import function
from irepa_jax.encoders import rows
from irepa_jax.encoders import spec as specs
from irepa_jax.encoders import unpack

SPECS = {tuple(row.name.split('-vit-')): row for row in rows.ROWS}
# Types whose config is a set of settings rather than a row.
PARSED = {'hog': rows.hog, 'sam2logit': rows.sam2logit}


def find(name):
  """Returns the Spec of a name; raises UsageError with the nearest name."""
  if ':' in name:
    return _own(name)
  kind, _, config = (name.split('-', 2) + ['', ''])[:3]
  if kind in PARSED and config:
    return PARSED[kind](config)
  if kind in rows.ANY_CONFIG and config:
    row = next(row for key, row in SPECS.items() if key[0] == kind)
    return dataclasses.replace(row, name=name)
  if (kind, config) not in SPECS:
    raise errors.UsageError(_unknown(name))
  return SPECS[kind, config]


def names():
  """Returns every name of the table, in its order."""
  return [row.name for row in rows.ROWS]


def looks_like(state_dict):
  """Returns the names whose weights a file could be, by its keys and size."""
  return [row.name for row in rows.ROWS if unpack.fits(row, state_dict)]


def _unknown(name):
  near = difflib.get_close_matches(name, names(), 1, cutoff=0.0)[0]
  return (
      f'unknown encoder {name!r}; did you mean {near!r}? known:'
      f' {", ".join(names())}, or your own as package.module:attribute'
  )


def _own(name):
  """Imports a user's Spec or function."""
  module, _, attribute = name.partition(':')
  try:
    found = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise errors.UsageError(f'encoder {name!r}: {error}') from error
  if isinstance(found, specs.Spec):
    return found
  if not callable(found):
    raise errors.UsageError(
        f'encoder {name!r} is {type(found).__name__}: it must be a Spec or a'
        ' function from images [b h w 3] in 0..255 to tokens [b n d]'
    )
  return function.row(name, found)
