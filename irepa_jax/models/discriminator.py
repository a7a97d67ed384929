"""The PatchGAN discriminator: is each patch of an image real?

Isola et al. 2017, arXiv 1611.07004, with the hinge loss; three layers that
halve the grid (the last one does not), as in CompVis taming-transformers, which
REPA-E uses. A patch is 70 pixels wide; the logits of 256 pixels are 30x30.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax.models import batch_norm
from irepa_jax.weights import convert

KERNEL, SLOPE = (4, 4), 0.2  # of convolutions; of LeakyReLU
STD = 0.02  # of the normal distributions that weights start from
# Convolutions by their place in the official sequence: stride; each but the
# first and the last is followed by a normalisation.
NORMED = {'main_3': 2, 'main_6': 2, 'main_9': 1}
# Statistics by their official names.
BUFFERS = {
    'mean': 'running_mean',
    'var': 'running_var',
    'count': 'num_batches_tracked',
}
WRAPPERS = ('state_dict', 'discriminator')  # of an official file
PREFIX = 'discriminator.'


class Discriminator(nn.Module):
  """Maps images [b H W 3] in [-1, 1] to logits float32 [b h w 1].

  statistics: of `initial`; with `train` the batch is normalised by its own, and
    the second result is those after it; else they are applied as they are.
  """

  width: int = 64
  groups: int = 1  # see batch_norm.train
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, statistics, train=True):
    x = leaky(self._conv(self.width, 2, 'main_0', bias=True)(x))
    after = {}
    for i, (name, stride) in enumerate(NORMED.items()):
      x = self._conv(self.width * 2 ** (i + 1), stride, f'main_{3 * i + 2}')(x)
      x, after[name] = self._normalised(x, statistics[name], train, name)
      x = leaky(x)
    x = self._conv(1, 1, 'main_11', bias=True)(x)
    return x.astype(jnp.float32), after

  def initial(self):
    """Returns the running statistics before the first batch."""
    widths = (self.width * 2 ** (i + 1) for i in range(len(NORMED)))
    return dict(zip(NORMED, map(batch_norm.initial, widths), strict=True))

  def example_inputs(self):
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    return image, jax.eval_shape(self.initial)

  def _conv(self, width, stride, name, bias=False):
    return nn.Conv(
        width,
        KERNEL,
        stride,
        padding=((1, 1), (1, 1)),
        use_bias=bias,
        dtype=self.dtype,
        kernel_init=nn.initializers.normal(STD),
        bias_init=_torch_bias(self.width * 8 if name == 'main_11' else 3),
        name=name,
    )

  def _normalised(self, x, running, train, name):
    if train:
      x, running = batch_norm.train(x, running, groups=self.groups)
    else:
      x = batch_norm.evaluate(x, running)
    return Affine(name=name)(x).astype(self.dtype), running


class Affine(nn.Module):
  """A weight and a bias per channel, those of the official normalisation."""

  @nn.compact
  def __call__(self, x):
    near_one = lambda key, shape: 1 + STD * jax.random.normal(key, shape)
    shape = x.shape[-1:]
    scale = self.param('scale', near_one, shape)
    return x * scale + self.param('bias', nn.initializers.zeros, shape)


def hinge(real, fake) -> jax.Array:
  """Returns the loss of the discriminator from its logits, []."""
  relu = lambda logits: jnp.mean(jax.nn.relu(logits))
  return 0.5 * (relu(1 - real) + relu(1 + fake))


def leaky(x):
  """LeakyReLU of the official slope."""
  return jax.nn.leaky_relu(x, SLOPE)


def from_torch(module, state_dict):
  """Converts an official state dict: {'discriminator', 'disc_bn'}, strictly.

  Accepts it below 'state_dict' or 'discriminator', and with that prefix, as
  the module of all losses has it.
  """
  for wrapper in WRAPPERS:
    state_dict = state_dict.get(wrapper, state_dict)
  named = {k.removeprefix(PREFIX): v for k, v in state_dict.items()}
  own = {k: v for k, v in named.items() if k.startswith('main.')}
  buffers = tuple(rf'.*\.{name}$' for name in BUFFERS.values())
  params = convert.from_torch(module, own, drop=buffers)
  return {'discriminator': params, 'disc_bn': read_statistics(own)}


def read_statistics(state_dict):
  """Returns the running statistics of an official state dict."""
  kinds = {'mean': np.float32, 'var': np.float32, 'count': np.int32}
  return {
      name: {
          kind: kinds[kind](state_dict[f'{name.replace("_", ".")}.{official}'])
          for kind, official in BUFFERS.items()
      }
      for name in NORMED
  }


def to_torch(module, params, statistics):
  """Converts weights and statistics into one official state dict."""
  entries = convert.to_torch(module, params)
  for name, running in statistics.items():
    for kind, official in BUFFERS.items():
      value = np.asarray(running[kind])
      value = value.astype(np.int64) if kind == 'count' else value
      entries[f'{name.replace("_", ".")}.{official}'] = value
  return entries


def _torch_bias(channels):
  """The default of torch.nn.Conv2d: uniform in +-1 / sqrt(fan in)."""
  bound = 1 / math.sqrt(channels * math.prod(KERNEL))
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound
  )
