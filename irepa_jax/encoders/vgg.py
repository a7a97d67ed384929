"""VGG-16 up to its fourth pooling: one token per 16 pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax.encoders import vit
from irepa_jax.models import vgg


class VGG(nn.Module):
  """Maps pixels [b 16*h 16*w 3] to tokens [b h*w 512], float32."""

  grid: tuple[int, int] = (16, 16)
  dtype: jnp.dtype = jnp.float32

  prefix = 0
  width = vgg.LAYERS[-2]

  def at(self, resolution):
    """Returns the module for images of a size."""
    return self.clone(grid=vit.grid(resolution))

  def example_inputs(self):
    """Returns the shape of one image's pixels."""
    h, w = self.grid
    side = vit.PIXELS_PER_TOKEN
    shape = (1, side * h, side * w, 3)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)

  @nn.compact
  def __call__(self, x):
    x = vgg.features(x, vgg.LAYERS, self.dtype)[-1]
    return x.reshape(len(x), -1, self.width).astype(jnp.float32)
