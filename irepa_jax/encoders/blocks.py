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
    qkv = Dense(3 * d, self.bias, self.dtype, name='qkv')(x)
    qkv = qkv.reshape(b, n, 3, self.heads, -1)
    q, k, v = (qkv[:, :, i] for i in range(3))  # [b n k h]
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
  """Linear layer with a float32 kernel [i o], used in the compute dtype."""

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    x = jax.lax.dot_general(
        x.astype(self.dtype),
        kernel.astype(self.dtype),
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    if self.use_bias:
      x = x + self.param('bias', nn.initializers.zeros, shape[1:])
    return x.astype(self.dtype)


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
