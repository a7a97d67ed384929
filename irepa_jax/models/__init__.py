"""The networks: diffusion transformers, projectors and autoencoders."""

import re

from irepa_jax import errors
from irepa_jax.models import autoencoders
from irepa_jax.models import sit

# Depth, width and heads by size. T is the quickstart's, M MeanFlow's; the rest
# is SiT's.
SIZES = {
    'T': dict(depth=4, width=64, heads=4),
    'S': dict(depth=12, width=384, heads=6),
    'B': dict(depth=12, width=768, heads=12),
    'M': dict(depth=16, width=1024, heads=16),
    'L': dict(depth=24, width=1024, heads=16),
    'XL': dict(depth=28, width=1152, heads=16),
}
PATCHES = (1, 2, 4, 8)

autoencoder = autoencoders.create


def create(name, **overrides):
  """Returns the module of a name like SiT-XL/2; overrides are its fields."""
  fields = sizes(name) | overrides
  depth = fields['depth']
  tap = fields.setdefault('align_depth', min(sit.SiT.align_depth, depth))
  if not 1 <= tap <= depth:
    raise errors.UsageError(
        f'align_depth is {tap}; {name} has blocks 1 to {depth}'
    )
  return sit.SiT(**fields)


def sizes(name):
  """Returns the fields that a name like SiT-XL/2 stands for."""
  match = re.fullmatch(r'SiT-(\w+)/(\d+)', name)
  if not match or match[1] not in SIZES or int(match[2]) not in PATCHES:
    raise errors.UsageError(
        f'unknown model {name!r}; SiT-{{{",".join(SIZES)}}}/{{'
        f'{",".join(map(str, PATCHES))}}}, for example SiT-XL/2'
    )
  return SIZES[match[1]] | {'patch': int(match[2])}
