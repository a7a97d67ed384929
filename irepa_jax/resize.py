"""Image resizing as PyTorch does it: one matrix per axis, out = R x C^T.

Pixel i of n stands at (i + 0.5) / n (align_corners=False). The matrices are
built in float64 and hold for images, token grids and position tables alike.
Kernels:

  bilinear     triangle; torch bilinear, also when shrinking
  bilinear_aa  triangle stretched by the shrink factor; torch antialias=True
  cubic075     Keys with a = -0.75; torch bicubic
  cubic05aa    Keys with a = -0.5, stretched; torch bicubic antialias=True, timm;
               PIL's bicubic up to its rounding
  cubic075_offset  as cubic075 with torch's scale_factor = (m + 0.1) / n, which
               DINOv2's code resizes its position table with

Without antialias the border pixel repeats outside; with it the weights are
renormalised over the pixels inside.

R. Keys, Cubic convolution interpolation for digital image processing, 1981.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
import numpy as np


class Kernel(NamedTuple):
  """weight(distance in pixels), zero from `radius` on."""

  weight: Callable[[np.ndarray], np.ndarray]
  radius: int
  antialias: bool
  offset: float = 0.0  # output pixels that only the scale counts


def resize(
    x: Float[Array, 'b h w c'], size: tuple[int, int], kernel: str
) -> Float[Array, 'b m n c']:
  """Resizes height and width; computed in float32, returned as x.dtype."""
  h, w = x.shape[1:3]
  if (h, w) == size:
    return x
  rows, columns = (
      jnp.asarray(matrix(n, m, kernel, 'float32'), jnp.float32)
      for n, m in ((h, size[0]), (w, size[1]))
  )
  y = x.astype(jnp.float32)
  y = jnp.einsum('mh,bhwc->bmwc', rows, y, precision='highest')
  y = jnp.einsum('nw,bmwc->bmnc', columns, y, precision='highest')
  return y.astype(x.dtype)


@functools.cache
def matrix(n: int, m: int, kernel: str, places: str = 'float64') -> np.ndarray:
  """Returns the read-only float64 weights [m n] that take n pixels to m.

  places: the dtype in which torch computes where an output pixel lies, that of
  its input. Rounding to float32 moves images by up to 3e-4 at 256 -> 224.
  """
  spec = KERNELS[kernel]
  build = _stretched if spec.antialias else _clamped
  weights = (
      np.eye(n) if n == m else build(_centres(n, m, spec, places), n, m, spec)
  )
  weights.setflags(write=False)
  return weights


def triangle(d):
  """The bilinear kernel."""
  return np.maximum(1 - np.abs(d), 0)


def keys(d, a):
  """The cubic convolution kernel of Keys."""
  d = np.abs(d)
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = a * (((d - 5) * d + 8) * d - 4)
  return np.where(d <= 1, near, np.where(d < 2, far, 0))


KERNELS = {
    'bilinear': Kernel(triangle, 1, False),
    'bilinear_aa': Kernel(triangle, 1, True),
    'cubic075': Kernel(functools.partial(keys, a=-0.75), 2, False),
    'cubic05aa': Kernel(functools.partial(keys, a=-0.5), 2, True),
    'cubic075_offset': Kernel(functools.partial(keys, a=-0.75), 2, False, 0.1),
}


def _centres(n, m, spec, places):
  """Returns where the m output pixels lie, in input pixel indices.

  Torch rounds the scale and then, once, the fused product and difference.
  """
  scale = np.dtype(places).type(n / (m + spec.offset)).astype(np.float64)
  centres = (np.arange(m) + 0.5) * scale - 0.5
  return centres.astype(places).astype(np.float64)


def _clamped(centres, n, m, spec):
  weights = np.zeros((m, n))
  for step in range(1 - spec.radius, spec.radius + 1):
    taken = np.floor(centres) + step
    column = np.clip(taken, 0, n - 1).astype(int)
    weights[np.arange(m), column] += spec.weight(centres - taken)
  return weights


def _stretched(centres, n, m, spec):
  distance = centres[:, None] - np.arange(n)
  weights = spec.weight(distance / max(n / m, 1))
  return weights / weights.sum(axis=1, keepdims=True)
