"""iREPA in JAX: diffusion transformers trained with representation alignment.

Scripts written for version 0.1 import `checkpoint` and `convert` from here;
the modules have moved to their rooms, and the old names still find them. They
are looked up when asked for, so that importing the package alone does not
import jax: commands set up their devices first.
"""

import importlib

__version__ = '0.1.0'  # the only place; setup.py and CITATION.cff follow it
MOVED = {
    'checkpoint': 'irepa_jax.checkpoints.manager',
    'convert': 'irepa_jax.weights.convert',
}


def __getattr__(name):
  if name not in MOVED:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return importlib.import_module(MOVED[name])
