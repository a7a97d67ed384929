"""JiT, the diffusion transformer on pixels (arXiv 2511.13720).

"Just image Transformer": large patches of the image through a bottleneck, no
autoencoder, and an estimate of the clean image as output. Beside what SiT has
it turns queries and keys by their place (RoPE), normalises by the root mean
square, gates its MLP (SwiGLU), and from block `context_start` on carries class
tokens in front of the patches.

The released code counts time the other way, from noise at 0 to data at 1, and
embeds that time: `1 - t` in JiT.__call__ is the one place that knows.
"""

from collections.abc import Callable
import functools
import itertools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from irepa_jax.models import forms
from irepa_jax.models import fused
from irepa_jax.models import layers
from irepa_jax.models import sit
from irepa_jax.models import stack

ROPE_BASE = 10_000.0


class JiT(nn.Module):
  """Estimates the clean images of x [b h w c] at times t [b], labels y [b].

  t=1 is noise; label `num_classes` is the null label. Returns the images
  float32 [b h w c] and, after block `align_depth`, the tokens of the patches
  [b n d] in the compute dtype.

  keep(block, place, probability, shape) -> bool is given in training with
  dropout: which values of an array [b ...] in a block, counted from 0, are
  kept. The module draws nothing.
  """

  patch: int
  width: int
  depth: int
  heads: int
  bottleneck: int = 128  # width between both products of the patch embedding
  context_start: int = 4  # the block, from 0, before which class tokens join
  context_length: int = 32
  num_classes: int = 1000
  size: int = 256  # side of the image
  channels: int = 3
  mlp_ratio: float = 4.0
  attn_dropout: float = 0.0  # in the middle half of the blocks
  proj_dropout: float = 0.0
  align_depth: int = 8  # 1 is the first block
  dtype: jnp.dtype = jnp.float32
  attention: str = 'auto'  # xla, cudnn
  platform: str = 'cpu'  # of forms.FORMS
  scan_layers: bool = False  # these four: see stack.Plan
  remat: str = 'none'
  gather: Callable | None = None
  constrain: Callable | None = None

  @nn.compact
  def __call__(self, x, t, y, keep=None):
    time = layers.TimestepEmbedder(
        self.width, dtype=self.dtype, name='t_embedder'
    )
    table = layers.LabelEmbedder(
        self.num_classes, self.width, name='y_embedder'
    )
    embed = PatchEmbed(
        self.patch, self.bottleneck, self.width, self.dtype, name='x_embedder'
    )
    label = table(y).astype(self.dtype)
    c = time(1 - t) + label
    x = stack.pin(embed(x) + self._positions(), self._plan())
    context = label[:, None] + self._context_positions()
    count = x.shape[1]
    for first, last in itertools.pairwise(self._cuts()):
      if first == self.context_start:
        x = stack.pin(jnp.concatenate([context, x], axis=1), self._plan())
      x = self._blocks(x, c, first, last, keep)
      if last == self.align_depth:
        tokens = x[:, -count:]
    features = self.patch**2 * self.channels
    final = FinalLayer(features, self.dtype, name='final_layer')
    x = final(x[:, -count:], c)
    return sit.unpatchify(x.astype(jnp.float32), self.patch), tokens

  def example_inputs(self):
    """Returns the shapes of x, t and y for a batch of one."""
    side, shape = self.size, jax.ShapeDtypeStruct
    return (
        shape((1, side, side, self.channels), jnp.float32),
        shape((1,), jnp.float32),
        shape((1,), jnp.int32),
    )

  @property
  def dropped_blocks(self):
    """The blocks with dropout, from 0: the middle half."""
    return range(self.depth // 4, self.depth // 4 * 3)

  def _cuts(self):
    """Returns where a stretch of equal blocks begins, and the end."""
    middle = self.dropped_blocks
    cuts = {0, self.align_depth, self.context_start, self.depth}
    if self.attn_dropout or self.proj_dropout:
      cuts |= {middle.start, middle.stop}
    return sorted(cut for cut in cuts if cut <= self.depth)

  def _positions(self):
    table = layers.sincos_2d(self.width, self.size // self.patch)[None]
    # A parameter, so that it stands in the weights as in official ones.
    fixed = self.param('pos_embed', lambda key: jnp.asarray(table))
    return jax.lax.stop_gradient(fixed).astype(self.dtype)

  def _context_positions(self):
    init = nn.initializers.normal(layers.TABLE_STD)
    shape = (1, self.context_length, self.width)
    return self.param('in_context_posemb', init, shape).astype(self.dtype)

  def _plan(self):
    return stack.Plan(self.scan_layers, self.remat, self.gather, self.constrain)

  def _blocks(self, x, c, first, last, keep):
    """Applies blocks first .. last - 1, which are alike."""
    drops = keep is not None and first in self.dropped_blocks
    make = functools.partial(
        Block,
        self.heads,
        self.size // self.patch,
        self.mlp_ratio,
        self.attn_dropout if drops else 0.0,
        self.proj_dropout if drops else 0.0,
        self.attention,
        self.platform,
        self.dtype,
    )
    names = {i: f'blocks_{i}' for i in range(first, last)}
    if self.is_initializing():
      for name in names.values():
        x = make(name=name)(x, c, None)
      return x
    block = make(parent=None)

    def apply(one, x, c):
      mine = functools.partial(keep, one['number']) if drops else None
      return block.apply({'params': one['weights']}, x, c, mine)

    params = self.variables['params']
    each = [
        {
            'weights': layers.cast(params[name], self.dtype),
            'number': jnp.int32(i),
        }
        for i, name in names.items()
    ]
    return stack.run(apply, each, x, c, self._plan())


class Block(nn.Module):
  """Attention and MLP on tokens x [b n d] under a condition c [b d].

  keep: of JiT, for this block; None is no dropout.
  """

  heads: int
  side: int  # patches per row
  mlp_ratio: float = 4.0
  attn_dropout: float = 0.0
  proj_dropout: float = 0.0
  attention: str = 'auto'
  platform: str = 'cpu'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, c, keep):
    attend = Attention(
        self.heads,
        self.side,
        self.attn_dropout,
        self.proj_dropout,
        self.attention,
        self.platform,
        self.dtype,
        name='attn',
    )
    hidden = int(int(x.shape[-1] * self.mlp_ratio) * 2 / 3)  # rounds down
    mlp = SwiGLU(hidden, self.proj_dropout, self.dtype, name='mlp')
    norm1, norm2 = ModulatedNorm(name='norm1'), ModulatedNorm(name='norm2')
    parts = sit.modulation(c, 6, self.dtype)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
    branch = attend(norm1(x, shift_a, scale_a), keep)
    x = fused.gated_sum(x, gate_a, branch)
    branch = mlp(norm2(x, shift_m, scale_m), keep)
    return fused.gated_sum(x, gate_m, branch)


class Attention(nn.Module):
  """Self-attention of tokens [b n d], turned by place; softmax in float32.

  Tokens in front of the side^2 patches are class tokens, which are not turned.
  """

  heads: int
  side: int
  attn_dropout: float
  proj_dropout: float
  implementation: str  # auto, or a key of forms.ATTENTION
  platform: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep):
    b, n, d = x.shape
    qkv = layers.Dense(3 * d, self.dtype, name='qkv')(x)
    parts = jnp.split(checkpoint_name(qkv, 'qkv'), 3, axis=-1)
    q, k, v = (part.reshape(b, n, self.heads, -1) for part in parts)
    angles = rotary_angles(d // self.heads, self.side, n - self.side**2)
    q = turned(RMSNorm(name='q_norm')(q), angles).astype(self.dtype)
    k = turned(RMSNorm(name='k_norm')(k), angles).astype(self.dtype)
    if self.attn_dropout:
      x = dropped_attention(q, k, v, keep, self.attn_dropout)
    else:
      x = forms.attention(self.implementation, self.platform)(q, k, v)
    x = checkpoint_name(x.reshape(b, n, d), 'attention')
    x = layers.Dense(d, self.dtype, name='proj')(x)
    return dropped(x, keep, 'attn_out', self.proj_dropout)


class SwiGLU(nn.Module):
  """A linear layer to SiLU(a) * b of its two halves, and one back."""

  hidden: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep):
    width = x.shape[-1]
    x = layers.Dense(2 * self.hidden, self.dtype, name='w12')(x)
    x = fused.swiglu(checkpoint_name(x, 'hidden'))
    x = dropped(x, keep, 'mlp_hidden', self.dropout)
    return layers.Dense(width, self.dtype, name='w3')(x)


class ModulatedNorm(nn.Module):
  """RMSNorm of x [b n d] with weights, times 1 + scale, plus shift [b d]."""

  @nn.compact
  def __call__(self, x, shift, scale):
    weight = self.param('scale', nn.initializers.ones, x.shape[-1:])
    gain = weight.astype(jnp.float32) * (1 + scale.astype(jnp.float32))
    return fused.modulated_rms(x, gain, shift)


class RMSNorm(nn.Module):
  """Divides by the root mean square and multiplies by weights, in float32."""

  @nn.compact
  def __call__(self, x):
    weight = self.param('scale', nn.initializers.ones, x.shape[-1:])
    x = x.astype(jnp.float32)
    square = jnp.square(x).mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(square + fused.NORM_EPS) * weight.astype(x.dtype)


class PatchEmbed(nn.Module):
  """Square patches to tokens in two products: [b h w c] -> [b n d]."""

  patch: int
  bottleneck: int
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    x = layers.Patches(
        self.patch, self.bottleneck, self.dtype, use_bias=False, name='proj1'
    )(x)
    # The second is a 1x1 convolution in official files.
    return layers.Patches(1, self.width, self.dtype, name='proj2')(x[:, :, None])


class FinalLayer(nn.Module):
  """Tokens [b n d] to the values of their patches [b n features]."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, c):
    shift, scale = sit.modulation(c, 2, self.dtype)
    x = ModulatedNorm(name='norm_final')(x, shift, scale)
    zeros = nn.initializers.zeros
    return layers.Dense(self.features, self.dtype, zeros, name='linear')(x)


def rotary_angles(head_width, side, prefix=0):
  """Returns the angle of every channel of a head, [prefix + side^2 head_width].

  Neighbouring channels share one; the first half turns by the row of a patch,
  the second by its column. Tokens of the prefix are not turned.
  """
  half = head_width // 2
  rates = ROPE_BASE ** (-np.arange(0, half, 2) / half)
  places = np.arange(side)[:, None] * np.repeat(rates, 2)  # [side half]
  rows = np.repeat(places, side, axis=0)
  columns = np.tile(places, (side, 1))
  angles = np.concatenate([rows, columns], axis=1)
  return np.pad(angles, ((prefix, 0), (0, 0)))


def turned(x, angles):
  """Turns pairs of channels (a, b) of x [b n k h] by angles [n h].

  (a, b) -> (a cos - b sin, b cos + a sin)
  """
  even = np.arange(x.shape[-1]) % 2 == 0
  cos, sin = (jnp.asarray(f(angles), x.dtype)[:, None] for f in (np.cos, np.sin))
  partner = jnp.where(even, -jnp.roll(x, -1, -1), jnp.roll(x, 1, -1))
  return x * cos + partner * sin


def dropped(x, keep, place, rate):
  """Zeroes a share `rate` of x, where keep says so, and enlarges the rest."""
  if not rate:
    return x
  kept = keep(place, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def dropped_attention(q, k, v, keep, rate):
  """Softmax attention of heads [b n k h] with dropout of its weights."""
  logits = jnp.einsum(
      'bnkh,bmkh->bknm', q, k, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits / np.sqrt(q.shape[-1]).astype(np.float32))
  weights = dropped(weights, keep, 'attn_weights', rate).astype(q.dtype)
  return jnp.einsum('bknm,bmkh->bnkh', weights, v)
