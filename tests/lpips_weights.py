"""Random weights of VGG-16 by the recipe of the oracles, and their heads."""

import golden_files
import numpy as np


def entries(golden, seed):
  """Returns the state dict behind an oracle of LPIPS.

  golden: with `lpips_sd` or `sd`, and the order of VGG's weights in its meta.
  """
  numbers = np.random.RandomState(seed)
  found = golden_files.subset(golden, 'lpips_sd')
  found = found or golden_files.subset(golden, 'sd')
  for name, shape in golden['meta']['order']:
    spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) == 4 else 0.05
    value = numbers.standard_normal(shape) * spread
    found[f'features.{name}'] = value.astype(np.float32)
  return found
