"""The operations of fused.py, as the compiler of TPUs does them best.

The mathematics is the same; what differs is what the gradient finds stored.
A TPU reads and writes probabilities [b k n n] faster than it sums over them, so
attention keeps its output and the logarithm of each row's sum, and a norm its
statistics [b n]: a few numbers per token, which spare the gradient whole passes
over the activations. The estimates are in docs/performance.md.
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
  """Softmax attention of heads [b n k h]; also log of the sums [b k n 1].

  The softmax is in float32.
  """
  logits = _logits(q, k)
  top = jnp.max(logits, -1, keepdims=True)
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, -1, keepdims=True)
  out = _average((weights / total).astype(q.dtype), v).astype(q.dtype)
  return out, top + jnp.log(total)


def _logits(q, k):
  return _einsum('bnkh,bmkh->bknm', q, k) / math.sqrt(q.shape[-1])


def _average(weights, v):
  return _einsum('bknm,bmkh->bnkh', weights, v)


def _einsum(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _probabilities(q, k, log_sum):
  return jnp.exp(_logits(q, k) - log_sum)


def _attention_backward(saved, g):
  """As in flash attention (arXiv 2205.14135, appendix B.4), in whole rows."""
  q, k, v, out, log_sum = saved
  dtype = q.dtype
  # Written once in the compute dtype: four products read them.
  probs = _once(_probabilities(q, k, log_sum).astype(dtype))
  along = _einsum('bnkh,bnkh->bkn', _float32(g), _float32(out))[..., None]
  d_logits = _float32(probs) * (_einsum('bnkh,bmkh->bknm', g, v) - along)
  d_logits = _once((d_logits / math.sqrt(q.shape[-1])).astype(dtype))
  d_q = _average(d_logits, k)
  d_k = _einsum('bknm,bnkh->bmkh', d_logits, q)
  d_v = _einsum('bknm,bnkh->bmkh', probs, g)
  return d_q.astype(dtype), d_k.astype(dtype), d_v.astype(dtype)


def _once(x):
  """Keeps the compiler from computing x again in each of its uses."""
  return jax.lax.optimization_barrier(x)


def _attention_forward(saved, d_logits):
  q, k, v, _, log_sum = saved
  probs = _probabilities(q, k, log_sum)
  along = jnp.sum(probs * d_logits, -1, keepdims=True)
  return _average((probs * (d_logits - along)).astype(q.dtype), v)


attention = fused.differentiable(
    _attention,
    (0, 1, 2, 3, 4),
    (
        lambda saved, d_q: _attention_forward(saved, _logits(d_q, saved[1])),
        lambda saved, d_k: _attention_forward(saved, _logits(saved[0], d_k)),
        lambda saved, d_v: _average(
            _probabilities(*saved[:2], saved[4]).astype(d_v.dtype), d_v
        ),
    ),
    _attention_backward,
    names=('average', 'sums'),
)
