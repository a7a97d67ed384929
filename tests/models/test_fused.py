"""Own derivatives against those of the library."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.models import fused

BF16_STEP = 2.0**-8  # relative distance of neighbouring bfloat16 numbers


def draw(*shapes, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), len(shapes))
  drawn = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
  return tuple(x.astype(dtype) for x in drawn)


@functools.partial(jax.jit, static_argnums=0)
def value_and_pull(f, inputs):
  """Returns f(*inputs) and the pullback of a fixed cotangent."""
  value, pull = jax.vjp(f, *inputs)
  g = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
  return value, *pull(g.astype(value.dtype))


def plain_norm(x, shift, scale):
  norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False)
  return norm.apply({}, x) * (1 + scale[:, None]) + shift[:, None]


def plain_rms(x, gain, shift):
  normed = nn.RMSNorm(epsilon=1e-6, use_scale=False).apply({}, x)
  out = normed.astype(jnp.float32) * gain.astype(jnp.float32)[:, None]
  return (out + shift.astype(jnp.float32)[:, None]).astype(x.dtype)


def plain_swiglu(x):
  a, b = jnp.split(x, 2, axis=-1)
  return nn.silu(a) * b


CASES = {
    'linear': (
        fused.linear,
        lambda x, kernel, bias: x @ kernel + bias,
        [(2, 5, 7), (7, 3), (3,)],
    ),
    'attention': (
        fused.attention,
        jax.nn.dot_product_attention,
        [(2, 9, 3, 8)] * 3,
    ),
    'gelu': (fused.gelu, nn.gelu, [(4, 6)]),
    'modulated_norm': (
        fused.modulated_norm,
        plain_norm,
        [(2, 5, 16), (2, 16), (2, 16)],
    ),
    'modulated_rms': (
        fused.modulated_rms,
        plain_rms,
        [(2, 5, 16), (2, 16), (2, 16)],
    ),
    'swiglu': (fused.swiglu, plain_swiglu, [(4, 6)]),
    'gated_sum': (
        fused.gated_sum,
        lambda x, gate, branch: x + gate[:, None] * branch,
        [(2, 5, 6), (2, 6), (2, 5, 6)],
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients_are_those_of_the_library(case):
  ours, library, shapes = CASES[case]
  inputs = draw(*shapes)
  found = value_and_pull(ours, inputs)
  wanted = value_and_pull(library, inputs)
  # Sums of at most 16 float32 numbers of size 1 in another order.
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=4e-6), found, wanted
  )


@pytest.mark.parametrize('case', CASES)
def test_forward_mode_is_that_of_the_library(case):
  ours, library, shapes = CASES[case]
  inputs, tangents = draw(*shapes), draw(*reversed(shapes))[::-1]

  def push(f, moved):
    """Returns the value and its derivative along some of the inputs."""
    choose = lambda a, b: [
        x if m else y for x, y, m in zip(a, b, moved, strict=True)
    ]
    along = choose(tangents, map(jnp.zeros_like, inputs))
    held = lambda *moving: f(*choose(moving, inputs))
    return jax.jit(lambda: jax.jvp(held, inputs, tuple(along)))()

  count = len(shapes)
  for moved in ([True] * count, *np.eye(count, dtype=bool)):
    found, wanted = push(ours, moved), push(library, moved)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted
    )


def test_what_does_not_move_costs_no_product():
  x, kernel, bias = draw((2, 5, 7), (7, 3), (3,))
  forward = lambda x: jax.jvp(
      lambda x: fused.linear(x, kernel, bias), (x,), (x,)
  )
  text = jax.jit(forward).lower(x).as_text()
  assert text.count('dot_general') == 2  # the value and dx kernel


@pytest.mark.parametrize('case', CASES)
def test_bfloat16_rounds_once_at_the_end(case):
  ours, _, shapes = CASES[case]
  inputs = draw(*shapes, dtype=jnp.bfloat16)
  found = value_and_pull(ours, inputs)
  wanted = value_and_pull(ours, [x.astype(jnp.float32) for x in inputs])
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == jnp.bfloat16
    # Two roundings at most: of a product or probability, and of the result.
    bound = 2 * BF16_STEP * np.abs(b).max()
    np.testing.assert_allclose(np.float32(a), b, rtol=0, atol=bound)


def test_a_single_cpu_moves_the_left_matrix_of_a_kernels_gradient(monkeypatch):
  x, kernel, bias = draw((2, 5, 7), (7, 3), (3,), dtype=jnp.bfloat16)
  gradient = lambda kernel: jax.grad(
      lambda kernel: jnp.sin(fused.linear(x, kernel, bias)).sum()
  )(kernel)
  several = jax.jit(gradient)(kernel)
  moves = lambda platform: (
      'LayoutConstraint'
      in jax.jit(lambda k: gradient(k))
      .trace(kernel)
      .lower(lowering_platforms=(platform,))
      .as_text()
  )
  assert not moves('cpu')  # of eight devices: it would gather x
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  assert moves('cpu') and not moves('tpu') and not moves('cuda')
  alone = jax.jit(lambda k: gradient(k))(kernel)
  bound = 2 * BF16_STEP * np.abs(np.float32(several)).max()
  np.testing.assert_allclose(np.float32(alone), np.float32(several), atol=bound)


def test_sums_over_tokens_do_not_stop_growing_in_bfloat16():
  # A bfloat16 sum of ones ends at 256, where 256 + 1 is 256 again.
  x = jnp.ones((1, 1024, 2), jnp.bfloat16)
  kernel, bias = jnp.ones((2, 2), jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)
  total = lambda f: lambda *args: f(*args).astype(jnp.float32).sum()
  d_bias = jax.grad(total(fused.linear), 2)(x, kernel, bias)
  d_gate = jax.grad(total(fused.gated_sum), 1)(x, x[:, 0], x)
  d_shift = jax.grad(total(fused.modulated_norm), 1)(x, x[:, 0], x[:, 0])
  for gradient in (d_bias, d_gate, d_shift):
    np.testing.assert_array_equal(gradient, 1024)


@pytest.mark.parametrize('case', ['attention', 'gelu', 'modulated_norm'])
def test_only_inputs_are_kept_for_the_gradient(case):
  ours, library, shapes = CASES[case]
  inputs = draw(*shapes)

  def kept(f):
    pull = jax.eval_shape(lambda *args: jax.vjp(f, *args)[1], *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(pull))

  assert kept(ours) <= sum(x.size for x in inputs)
  assert kept(ours) < kept(library)
