"""LPIPS: how different two images look to VGG-16.

  d(a, b) = sum over layers of mean over space of w . (a_l - b_l)^2

with a_l, b_l the activations before each of five pools, every position divided
by its norm. Zhang et al. 2018, arXiv 1801.03924, version 0.1. The published
weights are two files: torchvision's VGG-16 and the five vectors w.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax import errors
from irepa_jax.models import vgg
from irepa_jax.weights import convert
from irepa_jax.weights import files

# Of the authors' images in [-1, 1].
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to the norm of an activation
VGG_SOURCE = 'timm/vgg16.tv_in1k', 'model.safetensors'
HEADS_SOURCE = 'chaofengc/IQA-PyTorch-Weights', 'LPIPS_v0.1_vgg-a78928a0.pth'
UNUSED = (r'^classifier\.', r'^pre_logits\.', r'^head\.')  # of image classes


class LPIPS(nn.Module):
  """Distance of images a and b [b h w 3] in [-1, 1], float32 [b].

  doubled: images are doubled and lowered by one first, as REPA-E does although
    they are in [-1, 1] already.
  """

  doubled: bool = False
  dtype: jnp.dtype = jnp.float32

  TORCH_NAMES = (
      (r'^net\.', ''),
      (r'^lin(\d)\.', r'lin\1.model.1.'),
  )

  @nn.compact
  def __call__(self, a, b):
    net = Activations(self.doubled, self.dtype, name='net')
    pairs = zip(net(a), net(b), strict=True)
    return sum(self._distance(f'lin{i}', *p) for i, p in enumerate(pairs))

  def example_inputs(self):
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return image, image

  def _distance(self, name, a, b):
    square = jnp.square(unit(a) - unit(b))
    head = nn.Conv(1, (1, 1), use_bias=False, name=name)
    return jnp.mean(head(square), axis=(1, 2, 3))


class Activations(nn.Module):
  """VGG-16 up to what would go into its last pool, at five depths."""

  doubled: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = 2 * x - 1 if self.doubled else x
    x = (x - jnp.asarray(MEAN)) / jnp.asarray(STD)
    return vgg.features(x, (*vgg.LAYERS, *vgg.DEEPEST), self.dtype)


def unit(x):
  """Divides every position by its norm over the channels, float32."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  # A norm of zero has no gradient; sqrt would make it NaN.
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  return x / (norm + EPSILON)


def load(module, network='', heads=''):
  """Reads parameters from two paths or hub ids; '' are the published files.

  Raises DataError, in one line, for a file that is missing or another network.
  """
  vgg_file = files.fetch(*((network,) if network else VGG_SOURCE))
  heads_file = files.fetch(*((heads,) if heads else HEADS_SOURCE))
  entries = dict(files.read(vgg_file)) | dict(files.read(heads_file))
  try:
    return convert.from_torch(module, entries, drop=UNUSED)
  except errors.DataError as error:
    raise errors.DataError(
        f'{vgg_file} and {heads_file} are not VGG-16 and the heads of LPIPS:'
        f' {error}'
    ) from None
