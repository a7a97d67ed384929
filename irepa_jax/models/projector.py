"""Projectors from the model's tokens to the width of each encoder.

REPA uses an MLP; iREPA one 3x3 convolution on the token grid, because the
spatial structure of the target is what alignment should carry over.
"""

from collections.abc import Callable
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax.models import layers


class Projectors(nn.Module):
  """Maps tokens [b n d] to a tuple of [b n width], one per encoder."""

  kind: str  # mlp, linear, conv
  in_width: int
  widths: tuple[int, ...]
  grid: tuple[int, int] = (16, 16)  # rows and columns of the tokens
  hidden: int = 2048  # of mlp
  kernel: int = 3  # of conv
  dtype: jnp.dtype = jnp.float32
  gather: Callable | None = None  # of weights, by whoever applies it

  @nn.compact
  def __call__(self, tokens):
    make = KINDS[self.kind]
    return tuple(
        make(self, width, name=f'projectors_{k}')(tokens)
        for k, width in enumerate(self.widths)
    )

  def example_inputs(self):
    """Returns the shape of the tokens of one image."""
    shape = (1, math.prod(self.grid), self.in_width)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)


class MlpProjector(nn.Module):
  """Three linear layers with SiLU between them."""

  width: int
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    for i, size in ((0, self.hidden), (2, self.hidden), (4, self.width)):
      x = nn.silu(x) if i else x
      x = layers.Dense(size, self.dtype, name=f'projection_layer_{i}')(x)
    return x


class LinearProjector(nn.Module):
  """One linear layer."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    return layers.Dense(self.width, self.dtype, name='projection_layer')(x)


class ConvProjector(nn.Module):
  """One convolution on the token grid, zero padded."""

  width: int
  kernel: int
  grid: tuple[int, int]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    b, _, d = x.shape
    conv = layers.Conv(
        self.width, self.kernel, self.dtype, name='projection_layer'
    )
    return conv(x.reshape(b, *self.grid, d)).reshape(b, -1, self.width)


KINDS = {
    'mlp': lambda p, width, name: MlpProjector(
        width, p.hidden, p.dtype, name=name
    ),
    'linear': lambda p, width, name: LinearProjector(width, p.dtype, name=name),
    'conv': lambda p, width, name: ConvProjector(
        width, p.kernel, p.grid, p.dtype, name=name
    ),
}
