"""Layers of the transformers: products, attention, MLP, embeddings.

Parameters are float32 under their official names; a layer uses them in its
compute dtype. Each layer initialises itself as SiT does: xavier uniform
for products, zero biases, normal 0.02 for tables and the time embedding.
"""

import functools
import math

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from irepa_jax.models import forms
from irepa_jax.models import fused

MAX_PERIOD = 10_000.0
QK_NORM_EPS = 1e-5  # the default of torch.nn.LayerNorm
TABLE_STD = 0.02


class Dense(nn.Module):
  """Linear layer with a kernel [i o] and a bias; with `parts`, a list."""

  features: int
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  parts: int = 0  # equal parts of the output
  platform: str = 'cpu'  # of forms.FORMS

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, shape[1:])
    arrays = (a.astype(self.dtype) for a in (x, kernel, bias))
    form = forms.of(self.platform)
    return (
        form.split(*arrays, self.parts) if self.parts else form.linear(*arrays)
    )


def cast(params, dtype):
  """Casts weights to the dtype of matrix products; norms keep theirs."""
  own = lambda path: 'norm' in jax.tree_util.keystr(path)
  return jax.tree_util.tree_map_with_path(
      lambda path, w: w if own(path) else w.astype(dtype), params
  )


class Attention(nn.Module):
  """Self-attention over tokens [b n d]; softmax in float32."""

  heads: int
  qk_norm: bool = False
  implementation: str = 'auto'  # or a key of forms.ATTENTION
  platform: str = 'cpu'  # of forms.FORMS
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    b, n, d = x.shape
    dense = functools.partial(Dense, dtype=self.dtype, platform=self.platform)
    parts = dense(3 * d, parts=3, name='qkv')(x)
    q, k, v = (part.reshape(b, n, self.heads, -1) for part in parts)
    if self.qk_norm:
      q, k = self._norm(q, 'q_norm'), self._norm(k, 'k_norm')
    x = forms.attention(self.implementation, self.platform)(q, k, v)
    x = checkpoint_name(x.reshape(b, n, d), 'attention')
    return dense(d, name='proj')(x)

  def _norm(self, x, name):
    norm = nn.LayerNorm(epsilon=QK_NORM_EPS, dtype=jnp.float32, name=name)
    return norm(x.astype(jnp.float32)).astype(self.dtype)


class Mlp(nn.Module):
  """Two linear layers with a GELU between them."""

  hidden: int
  platform: str = 'cpu'  # of forms.FORMS
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    dense = functools.partial(Dense, dtype=self.dtype, platform=self.platform)
    width = x.shape[-1]
    x = checkpoint_name(dense(self.hidden, name='fc1')(x), 'hidden')
    return checkpoint_name(dense(width, name='fc2')(fused.gelu(x)), 'branch')


class PatchEmbed(nn.Module):
  """Linear embedding of square patches, row by row: [b h w c] -> [b n d]."""

  patch: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    return Patches(self.patch, self.width, self.dtype, name='proj')(x)


class Patches(nn.Module):
  """A convolution with kernel = stride = patch, as one matrix product."""

  patch: int
  width: int
  dtype: jnp.dtype
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    p = self.patch
    # Xavier of the matrix [p p c, width].
    init = nn.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)
    kernel = self.param('kernel', init, (p, p, c, self.width))
    bias = jnp.zeros((self.width,))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.width,))
    x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, (h // p) * (w // p), p * p * c)
    kernel = kernel.reshape(p * p * c, self.width)
    return fused.linear(*(a.astype(self.dtype) for a in (x, kernel, bias)))


class Conv(nn.Module):
  """Convolution [b h w c] of an odd kernel, zero padded, as one product.

  Initialised as torch.nn.Conv2d: uniform in +-1 / sqrt(fan in), weight and
  bias. The shifted copies of x that make up the patches are computed again in
  the gradient: stored they would be kernel^2 times as large as x.
  """

  features: int
  kernel_size: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    k, c = self.kernel_size, x.shape[-1]
    bound = 1 / math.sqrt(k * k * c)
    uniform = lambda key, shape: jax.random.uniform(
        key, shape, jnp.float32, -bound, bound
    )
    kernel = self.param('kernel', uniform, (k, k, c, self.features))
    bias = self.param('bias', uniform, (self.features,))

    @jax.checkpoint
    def product(x, kernel, bias):
      return fused.linear(shifted(x, k), kernel, bias)

    kernel = kernel.reshape(k * k * c, self.features)
    return product(*(a.astype(self.dtype) for a in (x, kernel, bias)))


class TimestepEmbedder(nn.Module):
  """Sinusoids of t in [0, 1] (not times 1000), then two linear layers."""

  width: int
  frequencies: int = 256
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, t):
    init = nn.initializers.normal(TABLE_STD)
    x = sinusoids(t, self.frequencies)
    x = Dense(self.width, self.dtype, init, name='mlp_0')(x)
    return Dense(self.width, self.dtype, init, name='mlp_2')(nn.silu(x))


class LabelEmbedder(nn.Module):
  """One row per class and, last, the null row of unconditional samples."""

  num_classes: int
  width: int

  @nn.compact
  def __call__(self, y):
    init = nn.initializers.normal(TABLE_STD)
    rows = self.num_classes + 1
    table = nn.Embed(
        rows, self.width, embedding_init=init, name='embedding_table'
    )
    return table(y)


def sinusoids(t, count):
  """Returns [cos | sin] of t [b] at `count` / 2 rates, float32 [b count]."""
  half = count // 2
  rates = MAX_PERIOD ** (-np.arange(half) / half)
  angles = t.astype(jnp.float32)[:, None] * jnp.asarray(rates, jnp.float32)
  table = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
  return jnp.pad(table, ((0, 0), (0, count % 2)))


def sincos_2d(width, side):
  """Position table [side^2 width]: columns first, then rows, each sin | cos."""
  rates = MAX_PERIOD ** (-np.arange(width // 4) / (width / 4))
  rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing='ij')
  table = lambda p: np.outer(p.reshape(-1), rates)
  parts = [f(table(p)) for p in (columns, rows) for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def shifted(x, k):
  """Returns the k x k zero-padded neighbourhoods: [b h w c] -> [b h w k*k*c]."""
  h, w = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
  parts = [x[:, i : i + h, j : j + w] for i in range(k) for j in range(k)]
  return jnp.concatenate(parts, -1)
