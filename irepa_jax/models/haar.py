"""An autoencoder of brightness, without weights: grey value, one Haar step.

Every 2x2 block of the grey image (mean of red, green and blue, in [-1, 1])
becomes four orthonormal coefficients: mean, column, row and diagonal detail.
Its inverse is its transpose, so grey images return exactly, and of colours only
the brightness is kept; the posterior has standard deviation 0. It stands in for a VAE where the images are tiny.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_PAIR = np.array([[1, 1], [1, -1]], np.float32) / np.sqrt(2).astype(np.float32)
# [coefficient, row in block, column in block]: mean, column, row, diagonal
BASIS = np.einsum('ai,bj->abij', _PAIR, _PAIR).reshape(4, 2, 2)


class Haar(nn.Module):
  """The transform with the methods of vae.VAE; it has no parameters."""

  channels = 4
  factor = 2

  def __call__(self, x):
    mean, _ = jnp.split(self.moments(x), 2, axis=-1)
    return self.decode(mean)

  def moments(self, x):
    """Maps images [b H W 3] to coefficients | zeros, [b H/2 W/2 8]."""
    b, h, w, _ = x.shape
    blocks = x.mean(-1).reshape(b, h // 2, 2, w // 2, 2)
    z = jnp.einsum('bhiwj,cij->bhwc', blocks, BASIS, precision='highest')
    return jnp.concatenate([z, jnp.zeros_like(z)], axis=-1)

  def decode(self, z):
    """Maps coefficients [b h w 4] to grey images [b 2h 2w 3]."""
    b, h, w, _ = z.shape
    x = jnp.einsum('bhwc,cij->bhiwj', z, BASIS, precision='highest')
    return jnp.repeat(x.reshape(b, 2 * h, 2 * w, 1), 3, axis=-1)

  def example_inputs(self):
    return (jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32),)
