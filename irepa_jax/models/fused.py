"""Operations that carry their own derivatives.

Beside arithmetic, a transformer pays for memory traffic: the library's
gradients of LayerNorm, GELU and softmax keep intermediates that cost more to
store and read than to compute again. These keep their inputs alone and recompute
the rest in float32. Products run in the compute dtype in both directions and accumulate
in float32, as do the sums over tokens in the gradients of biases and gates.

Each has a forward rule beside the reverse one, so that jax.jvp passes through
them as well: one mode or the other, not one inside the other.
"""

from collections.abc import Callable
import math

import jax
from jax import custom_derivatives
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import layout
import jax.numpy as jnp

GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBE = 0.044715  # of the tanh approximation
NORM_EPS = 1e-6


def differentiable(
    value: Callable,
    kept: tuple[int, ...],
    push: tuple[Callable, ...],
    pull: Callable,
    names: tuple[str | None, ...] = (None,),
) -> Callable:
  """Returns value(*inputs) -> output with derivatives of both modes.

  Args:
    value: of arrays, to one array; or to a tuple of it and of what only the
      derivatives need.
    kept: what the derivatives need, by position among the inputs and, after
      them, the results of `value`; nothing else is stored for the gradient.
    push: for each input (kept, its tangent) -> its share of the output's
      tangent, which is their sum.
    pull: (kept, cotangent of the output) -> cotangents of all inputs.
    names: of the results, for a policy of jax.checkpoint.
  """

  def results(*inputs):
    found = value(*inputs)
    return found if isinstance(found, tuple) else (found,)

  function = jax.custom_jvp(results)

  def rule(inputs, tangents):
    found = tuple(map(_named, function(*inputs), names))
    output, extra = found[0], found[1:]
    moved = [i for i, t in enumerate(tangents) if not _is_zero(t)]

    def forward(saved, given):
      shares = [push[i](saved, t) for i, t in zip(moved, given, strict=True)]
      return jnp.broadcast_to(sum(shares), output.shape).astype(output.dtype)

    def reverse(saved, g):
      pulled = pull(saved, g)
      return [pulled[i] for i in moved]

    saved = tuple((*inputs, *found)[i] for i in kept)
    given = [tangents[i] for i in moved]
    still = tuple(map(jnp.zeros_like, extra))
    if not moved:
      return found, (jnp.zeros_like(output), *still)
    moving = custom_derivatives.linear_call(forward, reverse, saved, given)
    return found, (moving, *still)

  function.defjvp(rule, symbolic_zeros=True)
  return lambda *inputs: function(*inputs)[0]


def _named(array, name):
  return checkpoint_name(array, name) if name else array


def _is_zero(tangent):
  return isinstance(tangent, custom_derivatives.SymbolicZero)


def _linear(x, kernel, bias):
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


linear = differentiable(
    _linear,
    (0, 1),
    (
        lambda saved, d_x: _product(d_x, saved[1], d_x.ndim - 1, 0),
        lambda saved, d_kernel: _product(
            saved[0], d_kernel, saved[0].ndim - 1, 0
        ),
        lambda saved, d_bias: _float32(d_bias),
    ),
    _linear_backward,
)


def _attention(q, k, v):
  """Softmax attention of heads [b n k h], softmax in float32.

  Keeps q, k and v; neither logits nor probabilities [b k n n] are stored.
  """
  return _average(q, k, v).astype(q.dtype)


def _average(q, k, v):
  probs = _probabilities(q, k).astype(q.dtype)
  return _einsum('bknm,bmkh->bnkh', probs, v)


def _logits(q, k):
  return _einsum('bnkh,bmkh->bknm', q, k) / math.sqrt(q.shape[-1])


def _probabilities(q, k):
  return jax.nn.softmax(_logits(q, k))


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


def _attention_forward(saved, d_logits):
  q, k, v = saved
  probs = _probabilities(q, k)
  along = jnp.sum(probs * d_logits, -1, keepdims=True)
  d_probs = (probs * (d_logits - along)).astype(q.dtype)
  return _einsum('bknm,bmkh->bnkh', d_probs, v)


attention = differentiable(
    _attention,
    (0, 1, 2),
    (
        lambda saved, d_q: _attention_forward(saved, _logits(d_q, saved[1])),
        lambda saved, d_k: _attention_forward(saved, _logits(saved[0], d_k)),
        lambda saved, d_v: _average(*saved[:2], d_v),
    ),
    _attention_backward,
)


def _gelu(x):
  """GELU in its tanh approximation."""
  half, _ = _half_gate(_float32(x))
  return (_float32(x) * half).astype(x.dtype)


def _half_gate(x):
  tanh = jnp.tanh(GELU_SCALE * (x + GELU_CUBE * x**3))
  return 0.5 * (1 + tanh), tanh


def _slope(x):
  x = _float32(x)
  half, tanh = _half_gate(x)
  inner = GELU_SCALE * (1 + 3 * GELU_CUBE * x**2)
  return half + 0.5 * x * (1 - tanh**2) * inner


gelu = differentiable(
    _gelu,
    (0,),
    (lambda saved, d_x: _float32(d_x) * _slope(*saved),),
    lambda saved, g: ((_float32(g) * _slope(*saved)).astype(g.dtype),),
)


def _modulated_norm(x, shift, scale):
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
  normed, _ = _norm(_float32(x))
  g = _float32(g)
  d_scale = jnp.sum(g * normed, 1).astype(x.dtype)
  d_shift = jnp.sum(g, 1).astype(x.dtype)
  # The derivative of the norm is symmetric.
  d_x = _of_normed(x, g * (1 + _float32(scale)[:, None]))
  return d_x.astype(x.dtype), d_shift, d_scale


def _of_normed(x, d_x):
  """Returns the tangent of the norm of x."""
  normed, rate = _norm(_float32(x))
  d_x = _float32(d_x)
  along = normed * jnp.mean(d_x * normed, -1, keepdims=True)
  return rate * (d_x - d_x.mean(-1, keepdims=True) - along)


modulated_norm = differentiable(
    _modulated_norm,
    (0, 2),
    (
        lambda saved, d_x: (
            _of_normed(saved[0], d_x) * (1 + _float32(saved[1])[:, None])
        ),
        lambda saved, d_shift: _float32(d_shift)[:, None],
        lambda saved, d_scale: (
            _norm(_float32(saved[0]))[0] * _float32(d_scale)[:, None]
        ),
    ),
    _modulated_backward,
)


def _modulated_rms(x, gain, shift):
  """RMSNorm of x [b n d] times gain [b d], plus shift [b d]; gain may be float32."""
  normed, _ = _rms(_float32(x))
  out = normed * _float32(gain)[:, None] + _float32(shift)[:, None]
  return out.astype(x.dtype)


def _rms(x):
  rate = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + NORM_EPS)
  return x * rate, rate


def _rms_slope(x, t):
  """Returns the derivative of RMSNorm along t; it is its own transpose."""
  normed, rate = _rms(_float32(x))
  return rate * (t - normed * jnp.mean(t * normed, -1, keepdims=True))


def _modulated_rms_backward(saved, g):
  x, gain = saved
  normed, _ = _rms(_float32(x))
  g = _float32(g)
  d_gain = jnp.sum(g * normed, 1).astype(gain.dtype)
  d_shift = jnp.sum(g, 1).astype(x.dtype)
  d_x = _rms_slope(x, g * _float32(gain)[:, None])
  return d_x.astype(x.dtype), d_gain, d_shift


modulated_rms = differentiable(
    _modulated_rms,
    kept=(0, 1),
    push=(
        lambda s, t: _rms_slope(s[0], _float32(t)) * _float32(s[1])[:, None],
        lambda s, t: _rms(_float32(s[0]))[0] * _float32(t)[:, None],
        lambda s, t: _float32(t)[:, None],
    ),
    pull=_modulated_rms_backward,
)


def _swiglu(x):
  """SiLU(a) * b of the two halves of x [... 2h]."""
  a, b = jnp.split(_float32(x), 2, axis=-1)
  return (jax.nn.silu(a) * b).astype(x.dtype)


def _swiglu_slopes(x):
  """Returns the derivatives of SiLU(a) * b by a and by b."""
  a, b = jnp.split(_float32(x), 2, axis=-1)
  gate = jax.nn.sigmoid(a)
  return b * gate * (1 + a * (1 - gate)), a * gate


def _swiglu_forward(saved, t):
  by_a, by_b = _swiglu_slopes(saved[0])
  t_a, t_b = jnp.split(_float32(t), 2, axis=-1)
  return by_a * t_a + by_b * t_b


def _swiglu_backward(saved, g):
  by_a, by_b = _swiglu_slopes(saved[0])
  g = _float32(g)
  d_x = jnp.concatenate([g * by_a, g * by_b], axis=-1)
  return (d_x.astype(saved[0].dtype),)


swiglu = differentiable(
    _swiglu, kept=(0,), push=(_swiglu_forward,), pull=_swiglu_backward
)


def _gated_sum(x, gate, branch):
  """Adds gate [b d] times branch [b n d] to x [b n d]."""
  return x + gate[:, None] * branch


def _gated_backward(saved, g):
  gate, branch = saved
  d_gate = jnp.sum(_float32(g) * _float32(branch), 1).astype(gate.dtype)
  return g, d_gate, g * gate[:, None]


gated_sum = differentiable(
    _gated_sum,
    (1, 2),
    (
        lambda saved, d_x: d_x,
        lambda saved, d_gate: d_gate[:, None] * saved[1],
        lambda saved, d_branch: saved[0][:, None] * d_branch,
    ),
    _gated_backward,
)
