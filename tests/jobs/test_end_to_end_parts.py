"""What a job counts of a step of REPA-E."""

import jax
import jax.numpy as jnp
import pytest

from configs import repa_e_xl
from irepa_jax import build
from irepa_jax.jobs import end_to_end
from irepa_jax.jobs import setup
from irepa_jax.models import flops
from irepa_jax.models import vae


@pytest.mark.parametrize(
    'vae, beside, whole', [('f8d4', 2_992, 3_761), ('f16d32_in', 1_478, 2_247)]
)
def test_gflop_of_a_step_are_those_of_its_passes(vae, beside, whole):
  """VAE 3 x forward, LPIPS 120, discriminator 50, alignment up to block 8."""
  config = repa_e_xl.get_config(f'repa_{vae}')
  built = build.experiment(config)
  found = end_to_end.train_flops(built, config) / 1e9
  assert found == pytest.approx(beside, rel=0.002)
  assert setup.train_flops(built, config) / 1e9 == pytest.approx(
      whole, rel=0.002
  )


def test_products_and_convolutions_are_counted_in_a_trace():
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
  nhwc = lambda x, k: jax.lax.conv_general_dilated(
      x, k, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  assert flops.counted(jax.jit(nhwc), x, kernel) == 2 * 2 * 6 * 6 * 5 * 27
  a = jax.ShapeDtypeStruct((4, 6), jnp.float32)
  assert flops.counted(lambda a: a @ a.T, a) == 2 * 4 * 4 * 6


def test_recomputation_changes_no_gradient():
  plain = vae.VAE(width=32, multipliers=(1,), blocks=1)
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
  params = plain.init(jax.random.key(1), x)
  loss = lambda module, p: jnp.sum(jnp.square(module.apply(p, x)))
  grads = [
      jax.jit(jax.grad(lambda p, m=module: loss(m, p)))(params)
      for module in (plain, plain.clone(remat=True))
  ]
  close = lambda a, b: jnp.allclose(a, b, rtol=1e-4, atol=1e-4)
  assert all(jax.tree.leaves(jax.tree.map(close, *grads)))
