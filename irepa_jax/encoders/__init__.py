"""Pretrained vision encoders whose tokens a diffusion model is aligned to.

  encoder = encoders.create('dinov2-vit-b', resolution=256)
  params = encoder.load()  # or load(path or hub id), from_torch(state_dict)
  tokens = encoder.encode(params, images)  # uint8 [b h w 3] -> [b n width]
"""

from irepa_jax import errors
from irepa_jax.encoders import zoo
from irepa_jax.encoders.encoder import Encoder
from irepa_jax.encoders.spec import Spec
from irepa_jax.encoders.table import parameters
from irepa_jax.encoders.table import table
from irepa_jax.encoders.table import table_markdown
from irepa_jax.encoders.table import table_text
from irepa_jax.encoders.zoo import names

__all__ = [
    'Encoder',
    'Spec',
    'create',
    'names',
    'parameters',
    'parse',
    'table',
    'table_markdown',
    'table_text',
]

# Fields of a module that follow from the name and the resolution.
FIXED = frozenset({'grid', 'side', 'parent', 'name'})
# How it runs: left out where the module has no such choice.
PLACEMENT = ('dtype', 'scan_layers', 'gather', 'constrain', 'platform')


def create(name, *, resolution=256, **overrides):
  """Returns the encoder of a name for square images of `resolution` pixels.

  Overrides are fields of its module, such as depth, width, heads and those of
  PLACEMENT, which a module without such a choice ignores. Raises UsageError for
  an unknown name, resolution or field.
  """
  spec = zoo.find(name)
  if spec.resolutions and resolution not in spec.resolutions:
    allowed = ' or '.join(map(str, spec.resolutions))
    raise errors.UsageError(
        f'{name} works at {allowed} pixels only, not {resolution}'
    )
  module = spec.module.at(resolution)
  fields = set(module.__dataclass_fields__) - FIXED
  for field in set(PLACEMENT) - fields:
    overrides.pop(field, None)
  unknown = sorted(set(overrides) - fields)
  if unknown:
    raise errors.UsageError(
        f'{name} has no field {unknown[0]!r}; it has'
        f' {", ".join(sorted(fields))}'
    )
  return Encoder(spec, resolution, module.clone(**overrides))


def parse(text, **settings):
  """Returns the encoders of comma-separated names; settings as in create."""
  entries = [name.strip() for name in text.split(',')]
  return tuple(create(name, **settings) for name in entries if name)
