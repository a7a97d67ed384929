"""A small network with the face of Inception, for tests that run many images."""

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax.evals import spaces

WIDTHS = {'pool': 6, 'spatial': 5, 'logits': 9}
SIDE = 4


def space(name='inception', sha256='5' * 64, seed=0, features=tuple(WIDTHS)):
  """Returns a spaces.Space: random projections of 4x4 cells and their square."""
  rng = np.random.RandomState(seed)
  rows = SIDE * SIDE * 3
  draw = lambda k: rng.standard_normal((rows, WIDTHS.get(k, 6))) / rows**0.5
  kernels = {k: draw(k).astype('f') for k in features}

  @jax.jit
  def extract(images):
    b, h, w, c = images.shape
    x = images.astype(jnp.float32) / 255
    cells = x.reshape(b, SIDE, h // SIDE, SIDE, w // SIDE, c).mean((2, 4))
    cells = cells.reshape(b, -1)
    product = lambda k: jnp.matmul(cells, k, precision='highest')
    return {name: product(k) ** 2 for name, k in kernels.items()}

  return spaces.Space(name, sha256, None, extract)


def images(count, seed=0, side=8, high=256):
  """Returns random uint8 images [n s s 3]."""
  rng = np.random.RandomState(seed)
  return rng.randint(0, high, (count, side, side, 3)).astype(np.uint8)
