"""SiT, the latent diffusion transformer (arXiv 2401.08740).

Patches of the latent, a fixed position table, and blocks whose norms are
modulated by time + label (adaLN-Zero). Beside its output the model returns the
tokens after block `align_depth`, which alignment compares with an encoder.
"""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax.models import forms
from irepa_jax.models import fused
from irepa_jax.models import layers
from irepa_jax.models import stack


class SiT(nn.Module):
  """Predicts the velocity of latents x [b h w c] at times t [b], labels y [b].

  t=1 is noise; label `num_classes` is the null label. A model with `durations`
  predicts the mean velocity over the time h [b] before t instead (MeanFlow,
  arXiv 2505.13447), one with `guidances` that with guidance [b 3]: a scale,
  and low and high of the times that are guided (iMF, arXiv 2512.02012). Returns
  the velocity float32 [b h w c] and the tokens [b n d] in the compute dtype.
  """

  patch: int
  width: int
  depth: int
  heads: int
  num_classes: int = 1000
  size: int = 32  # side of the latent
  channels: int = 4
  out_channels: int = 0  # 0: as channels; twice as many in the SiT release
  mlp_ratio: float = 4.0
  qk_norm: bool = False
  durations: bool = False  # a second time embedding, of h
  guidances: bool = False  # embeddings of a scale of guidance and its interval
  align_depth: int = 8  # 1 is the first block
  train_positions: bool = False  # the released REPA-E moves its table
  dtype: jnp.dtype = jnp.float32
  attention: str = 'auto'  # xla, cudnn
  platform: str = 'cpu'  # of forms.FORMS
  scan_layers: bool = False  # these four: see stack.Plan
  remat: str = 'none'
  gather: Callable | None = None
  constrain: Callable | None = None

  @nn.compact
  def __call__(self, x, t, y, h=None, guidance=None):
    embedder = functools.partial(
        layers.TimestepEmbedder, self.width, dtype=self.dtype
    )
    label = layers.LabelEmbedder(
        self.num_classes, self.width, name='y_embedder'
    )
    embed = layers.PatchEmbed(
        self.patch, self.width, self.dtype, name='x_embedder'
    )
    c = embedder(name='t_embedder')(t)
    if self.durations:
      c = c + embedder(name='h_embedder')(h)
    if self.guidances:
      scale, low, high = guidance.T
      c = c + embedder(name='omega_embedder')(1 - 1 / scale)
      c = c + embedder(name='cfg_t_start_embedder')(low)
      c = c + embedder(name='cfg_t_end_embedder')(high)
    c = c + label(y).astype(self.dtype)
    x = stack.pin(embed(x) + self._positions(), self._plan())
    tokens = x = self._blocks(x, c, 0, self.align_depth)
    x = self._blocks(x, c, self.align_depth, self.depth)
    features = self.patch**2 * (self.out_channels or self.channels)
    x = FinalLayer(features, self.dtype, name='final_layer')(x, c)
    x = unpatchify(x.astype(jnp.float32), self.patch)
    return x[..., : self.channels], tokens

  def example_inputs(self):
    """Returns the shapes of the inputs for a batch of one."""
    side, shape = self.size, jax.ShapeDtypeStruct
    x = shape((1, side, side, self.channels), jnp.float32)
    time, y = shape((1,), jnp.float32), shape((1,), jnp.int32)
    h = (time,) if self.durations else ()
    guidance = (shape((1, 3), jnp.float32),) if self.guidances else ()
    return x, time, y, *h, *guidance

  def _positions(self):
    table = layers.sincos_2d(self.width, self.size // self.patch)[None]
    # A parameter, so that it stands in the weights as in official ones.
    positions = self.param('pos_embed', lambda key: jnp.asarray(table))
    if not self.train_positions:
      positions = jax.lax.stop_gradient(positions)
    return positions.astype(self.dtype)

  def _plan(self):
    return stack.Plan(
        self.scan_layers,
        self.remat,
        self.gather,
        self.constrain,
        forms.of(self.platform).saved,
    )

  def _blocks(self, x, c, first, last):
    """Applies blocks first .. last - 1."""
    make = functools.partial(
        Block,
        self.heads,
        self.mlp_ratio,
        self.qk_norm,
        self.attention,
        self.platform,
        self.dtype,
    )
    names = [f'blocks_{i}' for i in range(first, last)]
    if self.is_initializing():
      for name in names:
        x = make(name=name)(x, c)
      return x
    block = make(parent=None)
    apply = lambda weights, x, c: block.apply({'params': weights}, x, c)
    params = self.variables['params']
    weights = [layers.cast(params[name], self.dtype) for name in names]
    return stack.run(apply, weights, x, c, self._plan())


class Block(nn.Module):
  """Attention and MLP on tokens x [b n d] under a condition c [b d]."""

  heads: int
  mlp_ratio: float = 4.0
  qk_norm: bool = False
  attention: str = 'auto'
  platform: str = 'cpu'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, c):
    attend = layers.Attention(
        self.heads,
        self.qk_norm,
        self.attention,
        self.platform,
        self.dtype,
        name='attn',
    )
    hidden = int(x.shape[-1] * self.mlp_ratio)
    mlp = layers.Mlp(hidden, self.platform, self.dtype, name='mlp')
    parts = modulation(c, 6, self.dtype, self.platform)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
    norm = forms.of(self.platform).modulated_norm
    branch = attend(norm(x, shift_a, scale_a))
    x = fused.gated_sum(x, gate_a, branch)
    branch = mlp(norm(x, shift_m, scale_m))
    return fused.gated_sum(x, gate_m, branch)


class FinalLayer(nn.Module):
  """Tokens [b n d] to the values of their patches [b n features]."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, c):
    shift, scale = modulation(c, 2, self.dtype)
    x = fused.modulated_norm(x, shift, scale)
    zeros = nn.initializers.zeros
    return layers.Dense(self.features, self.dtype, zeros, name='linear')(x)


def modulation(c, parts, dtype, platform='cpu'):
  """Maps c [b d] by SiLU and a linear layer to `parts` vectors [b d]."""
  linear = layers.Dense(
      parts * c.shape[-1],
      dtype,
      nn.initializers.zeros,
      platform=platform,
      name='adaLN_modulation_1',
  )
  return jnp.split(linear(nn.silu(c)), parts, axis=-1)


def unpatchify(x, patch):
  """Puts patches [b n p*p*c], row by row, into an image [b h w c]."""
  b, n, features = x.shape
  side, c = int(n**0.5), features // patch**2
  x = x.reshape(b, side, side, patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, side * patch, side * patch, c)
