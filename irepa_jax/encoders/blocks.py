"""Blocks of the vision transformers: norms, attention, MLP.

Matrix products run in the compute dtype and accumulate in float32; norms and
softmax are float32. Nothing is dropped out, nothing is drawn: the weights are
frozen where these are used.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax.encoders import rotary
from irepa_jax.models import forms

ACTIVATIONS = {
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
    'relu': nn.relu,
}
TURNS = {'dinov3': rotary.turn_halves, 'pe': rotary.turn_neighbours}


class Block(nn.Module):
  """Attention and MLP on tokens x [b n d], each after a norm."""

  heads: int
  hidden: int
  epsilon: float = 1e-6
  qkv_bias: bool = True
  rope: str = 'none'
  layer_scale: bool = False
  mlp: str = 'gelu'
  attention: str = 'auto'
  platform: str = 'cpu'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, angles=None):
    norm = functools.partial(LayerNorm, self.epsilon, self.dtype)
    attend = Attention(
        self.heads,
        self.qkv_bias,
        self.rope,
        self.attention,
        self.platform,
        self.dtype,
        name='attn',
    )
    x = x + self._scaled('ls1', attend(norm(name='norm1')(x), angles))
    mlp = (
        SwiGLU(self.hidden, self.dtype, name='mlp')
        if self.mlp == 'swiglu'
        else MLP(self.hidden, self.mlp, self.dtype, name='mlp')
    )
    return x + self._scaled('ls2', mlp(norm(name='norm2')(x)))

  def _scaled(self, name, x):
    return LayerScale(name=name)(x) if self.layer_scale else x


class Attention(nn.Module):
  """Self-attention over x [b n d]; `angles` turn the last of the tokens."""

  heads: int
  bias: bool = True
  rope: str = 'none'
  implementation: str = 'auto'
  platform: str = 'cpu'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, angles=None):
    b, n, d = x.shape
    # A TPU would move one product into another layout to take it apart.
    parts = 3 if self.platform == 'tpu' else 1
    qkv = Dense(3 * d, self.bias, self.dtype, parts, name='qkv')(x)
    qkv = [part.reshape(b, n, 3 // parts, self.heads, -1) for part in qkv]
    q, k, v = (part[:, :, i] for part in qkv for i in range(3 // parts))
    if angles is not None:
      q, k = self._turned(q, angles), self._turned(k, angles)
    attend = attention(self.implementation, self.platform)
    x = attend(q, k, v).reshape(b, n, d)
    return Dense(d, dtype=self.dtype, name='proj')(x)

  def _turned(self, x, angles):
    prefix = x.shape[1] - len(angles)
    patches = TURNS[self.rope](x[:, prefix:], angles)
    return jnp.concatenate([x[:, :prefix], patches], axis=1)


def attention(name='auto', platform='cpu'):
  """Returns softmax attention of heads [b n k h], softmax in float32."""
  if platform == 'cpu' or name == 'xla':
    return library_attention
  return forms.attention(name, platform)


def library_attention(q, k, v):
  """Attention of the library, which is the best without a gradient on a CPU."""
  with jax.numpy_dtype_promotion('standard'):  # the library mixes dtypes
    return jax.nn.dot_product_attention(q, k, v, implementation='xla')


class MLP(nn.Module):
  """Two linear layers with an activation between."""

  hidden: int
  activation: str = 'gelu'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    y = Dense(self.hidden, dtype=self.dtype, name='fc1')(x)
    y = ACTIVATIONS[self.activation](y)
    return Dense(x.shape[-1], dtype=self.dtype, name='fc2')(y)


class SwiGLU(nn.Module):
  """Gated MLP, w3(silu(gate) * up), arXiv 2002.05202; w12 is gate | up."""

  hidden: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    y = Dense(2 * self.hidden, dtype=self.dtype, name='w12')(x)
    gate, up = jnp.split(y, 2, axis=-1)
    return Dense(x.shape[-1], dtype=self.dtype, name='w3')(nn.silu(gate) * up)


class Dense(nn.Module):
  """Linear layer with a float32 kernel [i o], used in the compute dtype.

  With `parts` it returns a list of that many products, of parts of the kernel.
  """

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32
  parts: int = 0

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape[1:])
    if not self.parts:
      return self._product(x, kernel, bias)
    split = lambda w: jnp.split(w, self.parts, axis=-1)
    biases = split(bias) if self.use_bias else [None] * self.parts
    return [
        self._product(x, *pair)
        for pair in zip(split(kernel), biases, strict=True)
    ]

  def _product(self, x, kernel, bias):
    x = jax.lax.dot_general(
        x.astype(self.dtype),
        kernel.astype(self.dtype),
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return (x if bias is None else x + bias).astype(self.dtype)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis, in float32."""

  epsilon: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    return (x * scale + bias).astype(self.dtype)


class LayerScale(nn.Module):
  """A learned factor per channel."""

  @nn.compact
  def __call__(self, x):
    gamma = self.param('gamma', nn.initializers.ones, x.shape[-1:])
    return x * gamma.astype(x.dtype)
