"""The operations of fused.py, as the compiler of TPUs does them best.

The mathematics is the same. A TPU pays for passes over large arrays and for
moves between layouts: probabilities [b k n n] are written once, in the compute
dtype, and read by every product that needs them; the sums of their rows are
kept for the gradient; a norm reads its input once for both of its statistics.
The estimates are in docs/performance.md.
"""

import math

import jax
import jax.numpy as jnp

from irepa_jax.models import fused


def _linear(x, kernel, bias):
  """Multiplies x [... i] by kernel [i o] and adds bias [o]; all of one dtype."""
  return x @ kernel + bias


def _linear_backward(saved, g):
  x, kernel = saved
  rows = tuple(range(x.ndim - 1))
  d_x = _contract(g, kernel, (g.ndim - 1,), (1,))
  d_kernel = _contract(x, g, rows, rows)
  # Not summed over a flat axis: this sum joins the product that makes g.
  d_bias = jnp.sum(_float32(g), rows)
  return d_x.astype(x.dtype), d_kernel.astype(x.dtype), d_bias.astype(x.dtype)


def _contract(a, b, axes_a, axes_b):
  return jax.lax.dot_general(
      a,
      b,
      ((axes_a, axes_b), ((), ())),
      preferred_element_type=jnp.float32,
  )


def _float32(x):
  return x.astype(jnp.float32)


linear = fused.differentiable(
    _linear,
    (0, 1),
    (
        lambda saved, d_x: _float32(d_x @ saved[1]),
        lambda saved, d_kernel: _float32(saved[0] @ d_kernel),
        lambda saved, d_bias: _float32(d_bias),
    ),
    _linear_backward,
)


def _attention(q, k, v):
  """Softmax attention of heads [b n k h]; also the sums of rows [b k n 1].

  The softmax is in float32; the exponentials are multiplied in the compute
  dtype and divided by their sum at the end.
  """
  weights = _exponentials(q, k)
  total = jnp.sum(weights, -1, keepdims=True)
  weights, total = _once((weights.astype(q.dtype), total))
  out = _average(weights, v) / jnp.swapaxes(total, 1, 2)
  return out.astype(q.dtype), total


def _exponentials(q, k):
  logits = _logits(q, k)
  return jnp.exp(logits - jnp.max(logits, -1, keepdims=True))


def _logits(q, k):
  return _einsum('bnkh,bmkh->bknm', q, k) / math.sqrt(q.shape[-1])


def _average(weights, v):
  return _einsum('bknm,bmkh->bnkh', weights, v)


def _einsum(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _once(arrays):
  """Keeps the compiler from computing arrays again in each of their uses."""
  return jax.lax.optimization_barrier(arrays)


def _attention_backward(saved, g):
  q, k, v, total = saved
  dtype = q.dtype
  probs = _once((_exponentials(q, k) / total).astype(dtype))
  d_logits = _of_softmax(_float32(probs), _einsum('bnkh,bmkh->bknm', g, v))
  d_logits = _once((d_logits / math.sqrt(q.shape[-1])).astype(dtype))
  d_q = _average(d_logits, k)
  d_k = _einsum('bknm,bnkh->bmkh', d_logits, q)
  d_v = _einsum('bknm,bnkh->bmkh', probs, g)
  return d_q.astype(dtype), d_k.astype(dtype), d_v.astype(dtype)


def _of_softmax(probs, d):
  """Multiplies by the derivative of the softmax, which is symmetric."""
  return probs * (d - jnp.sum(probs * d, -1, keepdims=True))


def _attention_forward(saved, d_logits):
  q, k, v, total = saved
  d_probs = _of_softmax(_exponentials(q, k) / total, d_logits)
  return _average(d_probs.astype(q.dtype), v)


attention = fused.differentiable(
    _attention,
    (0, 1, 2, 4),
    (
        lambda saved, d_q: _attention_forward(saved, _logits(d_q, saved[1])),
        lambda saved, d_k: _attention_forward(saved, _logits(saved[0], d_k)),
        lambda saved, d_v: _average(
            (_exponentials(*saved[:2]) / saved[3]).astype(d_v.dtype), d_v
        ),
    ),
    _attention_backward,
    names=('average', 'sums'),
)


def _modulated_norm(x, shift, scale):
  """LayerNorm of x [b n d] without weights, times 1 + scale, plus shift [b d]."""
  out = _norm(x)[0] * _factor(scale) + _float32(shift)[:, None]
  return out.astype(x.dtype)


def _norm(x):
  """Returns the norm in float32 and its rate [b n 1], of one pass over x.

  A variance as the difference of two means loses float32 digits where the mean
  of x is many times its deviation: (mean / deviation)^2 * 1e-7 of its value.
  """
  x = _float32(x)
  mean = jnp.mean(x, -1, keepdims=True)
  variance = jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean)
  rate = jax.lax.rsqrt(jnp.maximum(variance, 0) + fused.NORM_EPS)
  return (x - mean) * rate, rate


def _factor(scale):
  return 1 + _float32(scale)[:, None]


def _modulated_backward(saved, g):
  x, scale = saved
  g = _float32(g)
  d_scale = jnp.sum(g * _norm(x)[0], 1).astype(x.dtype)
  d_shift = jnp.sum(g, 1).astype(x.dtype)
  # The derivative of the norm is symmetric.
  return _of_norm(x, g * _factor(scale)).astype(x.dtype), d_shift, d_scale


def _of_norm(x, d_x):
  """Returns the tangent of the norm of x."""
  normed, rate = _norm(x)
  d_x = _float32(d_x)
  along = normed * jnp.mean(d_x * normed, -1, keepdims=True)
  return rate * (d_x - d_x.mean(-1, keepdims=True) - along)


modulated_norm = fused.differentiable(
    _modulated_norm,
    (0, 2),
    (
        lambda saved, d_x: _of_norm(saved[0], d_x) * _factor(saved[1]),
        lambda saved, d_shift: _float32(d_shift)[:, None],
        lambda saved, d_scale: (
            _norm(saved[0])[0] * _float32(d_scale)[:, None]
        ),
    ),
    _modulated_backward,
)
