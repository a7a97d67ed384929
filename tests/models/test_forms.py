"""Every form of an operation against that of the CPU, which has its own tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.models import forms
from irepa_jax.models import fused
from irepa_jax.models import fused_tpu
from irepa_jax.models import sit
from irepa_jax.models import stack

BF16_STEP = 2.0**-8  # relative distance of neighbouring bfloat16 numbers
SHAPES = {
    'linear': [(2, 5, 7), (7, 6), (6,)],
    'attention': [(2, 9, 3, 8)] * 3,
    'modulated_norm': [(2, 5, 16), (2, 16), (2, 16)],
}


def draw(shapes, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), len(shapes))
  drawn = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
  return tuple(x.astype(dtype) for x in drawn)


def both_modes(f, inputs):
  """Returns the value, the pullback of a cotangent, the push of tangents."""
  value, pull = jax.vjp(f, *inputs)
  g = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
  tangents = tuple(jnp.sin(x) for x in inputs)
  return value, *pull(g.astype(value.dtype)), jax.jvp(f, inputs, tangents)[1]


@pytest.mark.parametrize('name', SHAPES)
def test_values_and_derivatives_are_those_of_the_cpu(name):
  inputs = draw(SHAPES[name])
  found = both_modes(getattr(forms.FORMS['tpu'], name), inputs)
  wanted = both_modes(getattr(forms.CPU, name), inputs)
  for a, b in zip(found, wanted, strict=True):
    # Sums of at most 16 float32 numbers of size 1 in another order.
    np.testing.assert_allclose(a, b, atol=6e-6)


@pytest.mark.parametrize('name', SHAPES)
def test_bfloat16_rounds_as_on_the_cpu(name):
  inputs = draw(SHAPES[name], jnp.bfloat16)
  found = both_modes(getattr(forms.FORMS['tpu'], name), inputs)
  wide = tuple(x.astype(jnp.float32) for x in inputs)
  wanted = both_modes(getattr(forms.CPU, name), wide)
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == jnp.bfloat16
    # Three roundings at most: of a probability, a product and the result; and
    # of tangents, which are drawn again from rounded inputs.
    bound = 4 * BF16_STEP * np.abs(b).max()
    np.testing.assert_allclose(np.float32(a), b, rtol=0, atol=bound)


def test_a_split_of_weights_is_a_split_of_the_output():
  x, kernel, bias = draw([(2, 5, 8), (8, 12), (12,)])
  ours = forms.split_weights(x, kernel, bias, 3)
  theirs = forms.split_output(x, kernel, bias, 3)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_norm_of_one_pass_holds_where_the_mean_is_large():
  (x,) = draw([(2, 5, 256)])
  shift, scale = jnp.zeros((2, 256)), jnp.zeros((2, 256))
  ours = fused_tpu.modulated_norm(30 + x, shift, scale)
  theirs = fused.modulated_norm(30 + x, shift, scale)
  # (mean / deviation)^2 times the float32 step, as the docstring says.
  step = 30**2 * 2.0**-23
  np.testing.assert_allclose(ours, theirs, rtol=step, atol=step)


def test_sums_over_tokens_do_not_stop_growing_in_bfloat16():
  # A bfloat16 sum of ones ends at 256, where 256 + 1 is 256 again.
  x = jnp.ones((1, 1024, 2), jnp.bfloat16)
  kernel, bias = jnp.ones((2, 2), jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)
  total = lambda f: lambda *args: f(*args).astype(jnp.float32).sum()
  d_bias = jax.grad(total(fused_tpu.linear), 2)(x, kernel, bias)
  d_shift = jax.grad(total(fused_tpu.modulated_norm), 1)(x, x[:, 0], x[:, 0])
  np.testing.assert_array_equal(d_bias, 1024)
  np.testing.assert_array_equal(d_shift, 1024)


@pytest.mark.parametrize(
    ('platform', 'dtype', 'width', 'chosen'),
    [
        ('cuda', jnp.bfloat16, 72, 'cudnn'),
        ('gpu', jnp.bfloat16, 64, 'cudnn'),
        ('gpu', jnp.bfloat16, 20, 'xla'),  # not a multiple of 8
        ('gpu', jnp.bfloat16, 256, 'xla'),
        ('gpu', jnp.float32, 64, 'xla'),
    ],
)
def test_attention_of_gpus(monkeypatch, platform, dtype, width, chosen):
  monkeypatch.setattr(forms, 'cudnn', lambda q, k, v: 'cudnn')
  monkeypatch.setattr(fused, 'attention', lambda q, k, v: 'xla')
  q = jnp.zeros((1, 2, 2, width), dtype)
  assert forms.attention('auto', platform)(q, q, q) == chosen


@pytest.mark.parametrize(
    ('platform', 'own'), [('tpu', fused_tpu), ('cpu', fused), ('other', fused)]
)
def test_other_platforms_have_one_attention(platform, own):
  assert forms.attention('auto', platform) is own.attention
  assert forms.attention('xla', platform) is fused.attention


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('remat', ['none', 'names', 'full'])
def test_a_stack_gives_the_same_gradient_in_every_form(remat, scan):
  x, c = draw([(2, 4, 16), (2, 16)])

  def gradient(platform):
    block = sit.Block(2, platform=platform, parent=None)
    keys = jax.random.split(jax.random.key(1), 2)
    weights = [
        jax.tree.map(
            lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size)).reshape(w.shape),
            block.init(key, x, c)['params'],
        )
        for key in keys
    ]
    saved = forms.of(platform).saved
    plan = stack.Plan(scan, remat, saved=saved)
    apply = lambda one, x, c: block.apply({'params': one}, x, c)
    loss = lambda ws: jnp.sin(stack.run(apply, ws, x, c, plan)).sum()
    return jax.jit(jax.grad(loss))(weights)

  # float32 sums of 16 and 64 numbers in another order, through two blocks.
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
      gradient('tpu'),
      gradient('cpu'),
  )


def test_what_is_stored_of_a_block_on_a_tpu():
  """Tokens, their averages and sums, both ends of the MLP: no q, k, v."""
  b, n, d = 2, 4, 16
  x, c = draw([(b, n, d), (b, d)])
  block = sit.Block(2, platform='tpu', parent=None)
  weights = block.init(jax.random.key(1), x, c)['params']
  names = forms.FORMS['tpu'].saved
  policy = jax.checkpoint_policies.save_only_these_names(*names)
  apply = lambda x: block.apply({'params': weights}, x, c)
  pull = jax.eval_shape(
      lambda x: jax.vjp(jax.checkpoint(apply, policy=policy), x)[1], x
  )
  kept = sorted(leaf.shape for leaf in jax.tree.leaves(pull))
  inner = [s for s in kept if s[:1] == (b,) and s != (b, d)]
  assert sorted(inner) == sorted(
      [(b, n, d), (b, n, 2, d // 2), (b, 2, n, 1), (b, n, 4 * d), (b, n, d)]
  )
