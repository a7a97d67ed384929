"""A frozen encoder: uint8 images in, tokens out, weights an argument.

Nothing updates the weights, so the matrices of the blocks are kept in the
dtype in which they are multiplied. That halves the memory of a large encoder
in bfloat16, and changes no token.
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.encoders import pixels
from irepa_jax.encoders import spec as specs
from irepa_jax.encoders import unpack
from irepa_jax.encoders import zoo
from irepa_jax.weights import files

MATRICES = re.compile(r'(^|/)blocks_\d+/.*kernel$')


@dataclasses.dataclass(frozen=True)
class Encoder:
  """An encoder at one resolution; its methods are pure and can be jitted."""

  spec: specs.Spec
  resolution: int  # of the images, pixels
  module: nn.Module

  @property
  def name(self):
    return self.spec.name

  @property
  def grid(self):
    """Tokens along height and width."""
    return self.module.grid

  @property
  def width(self):
    """Channels of a token."""
    return self.module.width

  @property
  def side(self):
    """Pixels along a side of what the network sees."""
    return self.module.example_inputs()[0].shape[1]

  @property
  def flops(self):
    """FLOPs of one image; 0 where the table does not know them."""
    sizes = dict(zip((256, 512), self.spec.gflops, strict=False))
    return 1e9 * sizes.get(self.resolution, 0)

  def init(self, key):
    """Returns random parameters; {} for encoders without weights."""
    inputs = [jnp.zeros(i.shape, i.dtype) for i in self.module.example_inputs()]
    return self._kept(self.module.init(key, *inputs).get('params', {}))

  def from_torch(self, state_dict):
    """Returns parameters from the arrays of a published weight file.

    The position table is resized to the grid. Raises DataError unless every
    key is used, in its right shape, or is one that is dropped on purpose.
    """
    try:
      params = unpack.parameters(self.spec, self.module, state_dict)
    except errors.DataError as error:
      others = zoo.looks_like(state_dict)
      if not others or self.name in others:
        raise
      raise errors.DataError(
          f'{error}; they look like the weights of {" or ".join(others[:3])},'
          f' not of {self.name}'
      ) from None
    return self._kept(params)

  def load(self, source=None):
    """Reads weights from a path or hub id; None is the published source."""
    if not self.spec.layouts:
      return {}
    file = None if source else self.spec.file
    path = files.fetch(source or self.spec.source, file)
    try:
      return self.from_torch(files.read(path))
    except errors.DataError as error:
      raise errors.DataError(f'{self.name}: {error}') from None

  def encode(self, params, images):
    """Maps images uint8 [b h w 3] to tokens float32 [b n width]."""
    x = pixels.prepare(images, self.side, self.spec.pixels)
    tokens = self.module.apply({'params': params}, x)
    return tokens[:, self.module.prefix :].astype(jnp.float32)

  def _kept(self, params):
    """Casts the matrices of blocks to the compute dtype."""
    dtype = getattr(self.module, 'dtype', jnp.float32)

    def cast(path, weight):
      matrix = MATRICES.search(sharding.path_name(path))
      return weight.astype(dtype) if matrix else weight

    return jax.tree_util.tree_map_with_path(cast, params)
