"""Operations that carry their own gradient.

Beside arithmetic, a transformer pays for memory traffic: the library's
gradients of LayerNorm, GELU and softmax keep intermediates that cost more to
store and read than to compute again. These keep their inputs alone and recompute
the rest in float32. Products run in the compute dtype in both directions and accumulate
in float32, as do the sums over tokens in the gradients of biases and gates.

They have a reverse mode only: jax.jvp cannot pass through them.
"""

import math

import jax
from jax.experimental import layout
import jax.numpy as jnp

GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBE = 0.044715  # of the tanh approximation
NORM_EPS = 1e-6


@jax.custom_vjp
def linear(x, kernel, bias):
  """Multiplies x [... i] by kernel [i o] and adds bias [o]; all of one dtype."""
  return _product(x, kernel, x.ndim - 1, 0).astype(x.dtype) + bias


def _linear_backward(saved, g):
  x, kernel = saved
  d_x = _product(g, kernel, g.ndim - 1, 1)
  x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
  d_kernel = _product_of_columns(x, g)
  d_bias = _float32(g).sum(0)
  return d_x.astype(x.dtype), d_kernel.astype(x.dtype), d_bias.astype(x.dtype)


def _product(a, b, axis_a, axis_b):
  dims = (((axis_a,), (axis_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _product_of_columns(x, g):
  """Returns x^T g, [i o], of x [n i] and g [n o].

  XLA's CPU multiplies bfloat16 fast only where the left matrix lies in memory
  row by row, so a single CPU moves x; it takes float32 otherwise, at a third of
  the speed. Over several devices the move would gather x.
  """
  product = lambda x, g: _product(x, g, 0, 0)
  if x.dtype != jnp.bfloat16 or jax.device_count() > 1:
    return product(x, g)
  rows = layout.Layout((0, 1))
  moved = lambda x: layout.with_layout_constraint(x.T, rows)
  return jax.lax.platform_dependent(
      x, g, cpu=lambda x, g: _product(moved(x), g, 1, 0), default=product
  )


def _float32(x):
  return x.astype(jnp.float32)


linear.defvjp(lambda x, w, b: (linear(x, w, b), (x, w)), _linear_backward)


@jax.custom_vjp
def attention(q, k, v):
  """Softmax attention of heads [b n k h], softmax in float32.

  Keeps q, k and v; neither logits nor probabilities [b k n n] are stored.
  """
  probs = _probabilities(q, k).astype(q.dtype)
  return _einsum('bknm,bmkh->bnkh', probs, v).astype(q.dtype)


def _probabilities(q, k):
  logits = _einsum('bnkh,bmkh->bknm', q, k)
  return jax.nn.softmax(logits / math.sqrt(q.shape[-1]))


def _attention_backward(saved, g):
  q, k, v = saved
  probs = _probabilities(q, k)
  d_v = _einsum('bknm,bnkh->bmkh', probs.astype(q.dtype), g)
  d_probs = _einsum('bnkh,bmkh->bknm', g, v)
  along = jnp.sum(d_probs * probs, -1, keepdims=True)
  d_logits = probs * (d_probs - along) / math.sqrt(q.shape[-1])
  d_logits = d_logits.astype(q.dtype)
  d_q = _einsum('bknm,bmkh->bnkh', d_logits, k)
  d_k = _einsum('bknm,bnkh->bmkh', d_logits, q)
  return d_q.astype(q.dtype), d_k.astype(q.dtype), d_v.astype(q.dtype)


def _einsum(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


attention.defvjp(
    lambda q, k, v: (attention(q, k, v), (q, k, v)), _attention_backward
)


@jax.custom_vjp
def gelu(x):
  """GELU in its tanh approximation."""
  half, _ = _half_gate(_float32(x))
  return (_float32(x) * half).astype(x.dtype)


def _half_gate(x):
  tanh = jnp.tanh(GELU_SCALE * (x + GELU_CUBE * x**3))
  return 0.5 * (1 + tanh), tanh


def _gelu_backward(x, g):
  dtype, x = x.dtype, _float32(x)
  half, tanh = _half_gate(x)
  inner = GELU_SCALE * (1 + 3 * GELU_CUBE * x**2)
  slope = half + 0.5 * x * (1 - tanh**2) * inner
  return ((_float32(g) * slope).astype(dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def modulated_norm(x, shift, scale):
  """LayerNorm of x [b n d] without weights, times 1 + scale, plus shift [b d]."""
  normed, _ = _norm(_float32(x))
  out = normed * (1 + _float32(scale)[:, None]) + _float32(shift)[:, None]
  return out.astype(x.dtype)


def _norm(x):
  centred = x - x.mean(-1, keepdims=True)
  rate = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPS)
  return centred * rate, rate


def _modulated_backward(saved, g):
  x, scale = saved
  normed, rate = _norm(_float32(x))
  g = _float32(g)
  d_scale = jnp.sum(g * normed, 1).astype(x.dtype)
  d_shift = jnp.sum(g, 1).astype(x.dtype)
  g = g * (1 + _float32(scale)[:, None])
  along = normed * jnp.mean(g * normed, -1, keepdims=True)
  d_x = rate * (g - g.mean(-1, keepdims=True) - along)
  return d_x.astype(x.dtype), d_shift, d_scale


modulated_norm.defvjp(
    lambda x, shift, scale: (modulated_norm(x, shift, scale), (x, scale)),
    _modulated_backward,
)


@jax.custom_vjp
def modulated_rms(x, gain, shift):
  """RMSNorm of x [b n d] times gain [b d], float32, plus shift [b d]."""
  normed, _ = _rms(_float32(x))
  return (normed * gain[:, None] + _float32(shift)[:, None]).astype(x.dtype)


def _rms(x):
  rate = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + NORM_EPS)
  return x * rate, rate


def _modulated_rms_backward(saved, g):
  x, gain = saved
  normed, rate = _rms(_float32(x))
  g = _float32(g)
  d_gain = jnp.sum(g * normed, 1)
  d_shift = jnp.sum(g, 1).astype(x.dtype)
  g = g * gain[:, None]
  along = normed * jnp.mean(g * normed, -1, keepdims=True)
  return (rate * (g - along)).astype(x.dtype), d_gain, d_shift


modulated_rms.defvjp(
    lambda x, gain, shift: (modulated_rms(x, gain, shift), (x, gain)),
    _modulated_rms_backward,
)


@jax.custom_vjp
def swiglu(x):
  """SiLU(a) * b of the two halves of x [... 2h]."""
  a, b = jnp.split(_float32(x), 2, axis=-1)
  return (jax.nn.silu(a) * b).astype(x.dtype)


def _swiglu_backward(x, g):
  dtype, g = x.dtype, _float32(g)
  a, b = jnp.split(_float32(x), 2, axis=-1)
  gate = jax.nn.sigmoid(a)
  slope = gate * (1 + a * (1 - gate))
  d_x = jnp.concatenate([g * b * slope, g * a * gate], axis=-1)
  return (d_x.astype(dtype),)


swiglu.defvjp(lambda x: (swiglu(x), x), _swiglu_backward)


@jax.custom_vjp
def gated_sum(x, gate, branch):
  """Adds gate [b d] times branch [b n d] to x [b n d]."""
  return x + gate[:, None] * branch


def _gated_backward(saved, g):
  gate, branch = saved
  d_gate = jnp.sum(_float32(g) * _float32(branch), 1).astype(gate.dtype)
  return g, d_gate, g * gate[:, None]


gated_sum.defvjp(
    lambda x, gate, branch: (gated_sum(x, gate, branch), (gate, branch)),
    _gated_backward,
)
