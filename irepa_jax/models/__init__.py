"""The networks: diffusion transformers, projectors and autoencoders."""

import re
from typing import Any
from typing import NamedTuple

from irepa_jax import errors
from irepa_jax.models import autoencoders
from irepa_jax.models import just_image
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
# Sizes of JiT, with the block before which class tokens join. T is the
# quickstart's; G is in the paper alone.
JIT_SIZES = {
    'T': dict(
        depth=4, width=64, heads=4, bottleneck=16, context_start=2,
        context_length=4,
    ),  # fmt: skip
    'B': dict(depth=12, width=768, heads=12, bottleneck=128, context_start=4),
    'L': dict(depth=24, width=1024, heads=16, bottleneck=128, context_start=8),
    'H': dict(depth=32, width=1280, heads=16, bottleneck=256, context_start=10),
    'G': dict(depth=40, width=1664, heads=16, bottleneck=256, context_start=10),
}
JIT_PATCHES = (2, 4, 8, 16, 32, 64)


class Family(NamedTuple):
  """Models of one kind: SIZE/PATCH completes the name of one."""

  module: Any
  sizes: dict[str, dict[str, int]]
  patches: tuple[int, ...]
  settings: tuple[str, ...]  # fields that only this kind has


FAMILIES = {
    'SiT': Family(sit.SiT, SIZES, PATCHES, ('qk_norm', 'train_positions')),
    'JiT': Family(
        just_image.JiT, JIT_SIZES, JIT_PATCHES, ('attn_dropout', 'proj_dropout')
    ),
}

autoencoder = autoencoders.create


def create(name, **overrides):
  """Returns the module of a name like SiT-XL/2; overrides are its fields."""
  module, fields = family(name).module, sizes(name) | overrides
  depth = fields['depth']
  tap = fields.setdefault('align_depth', min(module.align_depth, depth))
  if not 1 <= tap <= depth:
    raise errors.UsageError(
        f'align_depth is {tap}; {name} has blocks 1 to {depth}'
    )
  return module(**fields)


def family(name):
  """Returns the Family of a name like JiT-B/16; UsageError if there is none."""
  match = re.fullmatch(r'(\w+)-(\w+)/(\d+)', name)
  found = match and FAMILIES.get(match[1])
  if not found or match[2] not in found.sizes or int(match[3]) not in found.patches:
    known = ', '.join(
        f'{kind}-{{{",".join(f.sizes)}}}/{{{",".join(map(str, f.patches))}}}'
        for kind, f in FAMILIES.items()
    )
    raise errors.UsageError(
        f'unknown model {name!r}; {known}, for example SiT-XL/2'
    )
  return found


def sizes(name):
  """Returns the fields that a name like SiT-XL/2 stands for."""
  size, patch = name.partition('-')[2].split('/')
  return family(name).sizes[size] | {'patch': int(patch)}
