"""The KL autoencoder of latent diffusion (SD-VAE f8d4, IN-VAE f16d32), NHWC.

x -> Encoder -> quant_conv -> (mean | logvar); z -> post_quant_conv -> Decoder.
Residual blocks of GroupNorm, SiLU and 3x3 convolutions; one attention block in
the middle (f16d32: also in its deepest level). Rombach et al. 2022, arXiv
2112.10752; layers and names as in CompVis ldm/modules/diffusionmodules/model.py
with temb_channels 0. Images are in [-1, 1].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

GROUPS = 32
EPSILON = 1e-6  # of every GroupNorm
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


class VAE(nn.Module):
  """Autoencoder with `encode`, `decode` and, to create parameters, a call."""

  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  channels: int = 4
  attention_levels: tuple[int, ...] = ()
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # the gradient computes blocks again, stores their inputs

  TORCH_NAMES = ((r'\.mid\.(block|attn)\.', r'.mid.\1_'),)

  def setup(self):
    shape = {
        'width': self.width,
        'multipliers': self.multipliers,
        'blocks': self.blocks,
        'attention_levels': self.attention_levels,
        'dtype': self.dtype,
        'remat': self.remat,
    }
    self.encoder = Encoder(2 * self.channels, **shape)
    self.decoder = Decoder(3, **shape)
    self.quant_conv = nn.Conv(2 * self.channels, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(self.channels, (1, 1), dtype=self.dtype)

  def __call__(self, x):
    return self.decode(posterior(self.encode(x))[0])

  def encode(self, x):
    """Maps images [b H W 3] to the posterior's mean | logvar, [b h w 2c]."""
    x = self.quant_conv(self.encoder(x.astype(self.dtype)))
    return x.astype(jnp.float32)

  def moments(self, x):
    """Maps images [b H W 3] to the posterior's mean | std, [b h w 2c]."""
    return jnp.concatenate(posterior(self.encode(x)), axis=-1)

  def decode(self, z):
    """Maps latents [b h w c] to images [b H W 3]; nothing is clipped."""
    x = self.decoder(self.post_quant_conv(z.astype(self.dtype)))
    return x.astype(jnp.float32)

  @property
  def factor(self):
    """Pixels per latent, along each side."""
    return 2 ** (len(self.multipliers) - 1)

  def example_inputs(self):
    side = 4 * self.factor
    return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)


def posterior(mean_logvar):
  """Returns the mean and standard deviation, logvar clamped to [-30, 20]."""
  mean, logvar = _clamped(mean_logvar)
  return mean, jnp.exp(0.5 * logvar)


def kl(mean_logvar):
  """Returns the divergence of the posterior from a standard normal, [b]."""
  mean, logvar = _clamped(mean_logvar)
  terms = jnp.square(mean) + jnp.exp(logvar) - 1 - logvar
  return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


def _clamped(mean_logvar):
  mean, logvar = jnp.split(mean_logvar, 2, axis=-1)
  return mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX)


class Encoder(nn.Module):
  """Levels that halve the grid, then a middle; [b H W 3] to [b h w f]."""

  features: int
  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention_levels: tuple[int, ...]
  dtype: jnp.dtype
  remat: bool

  @nn.compact
  def __call__(self, x):
    x = conv(self.width, self.dtype, 'conv_in')(x)
    last = len(self.multipliers) - 1
    for i, multiplier in enumerate(self.multipliers):
      x = Level(
          self.width * multiplier,
          self.blocks,
          i in self.attention_levels,
          'downsample' if i < last else None,
          self.dtype,
          self.remat,
          name=f'down_{i}',
      )(x)
    x = Middle(self.dtype, self.remat, name='mid')(x)
    x = nn.silu(normalize(x, self.dtype, 'norm_out'))
    return conv(self.features, self.dtype, 'conv_out')(x)


class Decoder(nn.Module):
  """A middle, then levels that double the grid, the deepest (last) first."""

  features: int
  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention_levels: tuple[int, ...]
  dtype: jnp.dtype
  remat: bool

  @nn.compact
  def __call__(self, z):
    x = conv(self.width * self.multipliers[-1], self.dtype, 'conv_in')(z)
    x = Middle(self.dtype, self.remat, name='mid')(x)
    for i, multiplier in reversed(list(enumerate(self.multipliers))):
      x = Level(
          self.width * multiplier,
          self.blocks + 1,
          i in self.attention_levels,
          'upsample' if i > 0 else None,
          self.dtype,
          self.remat,
          name=f'up_{i}',
      )(x)
    x = nn.silu(normalize(x, self.dtype, 'norm_out'))
    return conv(self.features, self.dtype, 'conv_out')(x)


class Level(nn.Module):
  """Residual blocks of one grid size, with attention or not, and a step."""

  width: int
  blocks: int
  attention: bool
  step: str | None
  dtype: jnp.dtype
  remat: bool

  @nn.compact
  def __call__(self, x):
    resblock, attention = parts(self.remat)
    for i in range(self.blocks):
      x = resblock(self.width, self.dtype, name=f'block_{i}')(x)
      if self.attention:
        x = attention(self.dtype, name=f'attn_{i}')(x)
    if self.step:
      x = STEPS[self.step](self.width, self.dtype, name=self.step)(x)
    return x


class Downsample(nn.Module):
  """Pads right and below by one, then a 3x3 convolution of stride 2."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    pad = ((0, 1), (0, 1))
    return conv(self.width, self.dtype, 'conv', strides=2, padding=pad)(x)


class Upsample(nn.Module):
  """Repeats every pixel twice both ways, then a 3x3 convolution."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return conv(self.width, self.dtype, 'conv')(x)


STEPS = {'downsample': Downsample, 'upsample': Upsample}


class Middle(nn.Module):
  """Residual block, attention, residual block, all at the width of x."""

  dtype: jnp.dtype
  remat: bool

  @nn.compact
  def __call__(self, x):
    resblock, attention = parts(self.remat)
    width = x.shape[-1]
    x = resblock(width, self.dtype, name='block_1')(x)
    x = attention(self.dtype, name='attn_1')(x)
    return resblock(width, self.dtype, name='block_2')(x)


def parts(remat):
  """Returns the modules of a level, which recompute themselves or not."""
  return tuple(map(nn.remat, BLOCKS)) if remat else BLOCKS


class ResBlock(nn.Module):
  """Two convolutions beside x, or beside a 1x1 one where the width changes."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    h = nn.silu(normalize(x, self.dtype, 'norm1'))
    h = conv(self.width, self.dtype, 'conv1')(h)
    h = nn.silu(normalize(h, self.dtype, 'norm2'))
    h = conv(self.width, self.dtype, 'conv2')(h)
    if x.shape[-1] != self.width:
      x = conv(self.width, self.dtype, 'nin_shortcut', kernel=1)(x)
    return x + h


class Attention(nn.Module):
  """x plus single-head attention over all positions, by 1x1 convolutions."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    y = normalize(x, self.dtype, 'norm')
    project = lambda name: conv(c, self.dtype, name, kernel=1)
    q, k, v = (project(name)(y).reshape(b, h * w, c) for name in 'qkv')
    scores = jnp.einsum('bnd,bmd->bnm', q, k).astype(jnp.float32) * c**-0.5
    weights = jax.nn.softmax(scores).astype(self.dtype)
    y = jnp.einsum('bnm,bmd->bnd', weights, v).reshape(b, h, w, c)
    return x + project('proj_out')(y)


BLOCKS = (ResBlock, Attention)


def normalize(x, dtype, name):
  """Group-normalises in float32; statistics by the two-pass formula."""
  norm = nn.GroupNorm(
      GROUPS, epsilon=EPSILON, use_fast_variance=False, name=name
  )
  return norm(x.astype(jnp.float32)).astype(dtype)


def conv(width, dtype, name, kernel=3, strides=1, padding='SAME'):
  """Returns a square convolution; `SAME` pads as torch does at stride 1."""
  size = (kernel, kernel)
  return nn.Conv(width, size, strides, padding, dtype=dtype, name=name)
