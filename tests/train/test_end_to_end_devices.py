"""A step of REPA-E is the same on every mesh, batch statistics included."""

import functools

import jax
import numpy as np
import pytest

from configs import quickstart_repa_e
from irepa_jax import build
from irepa_jax.distributed import sharding
from irepa_jax.jobs import setup
from irepa_jax.tools.benchmarks import step as benchmark

pytestmark = pytest.mark.usefixtures('fast_compile')

# name: (data, fields of the configuration)
MESHES = {
    'data': (8, {'fsdp': False, 'remat': 'names'}),
    'fsdp': (8, {'fsdp': True}),
}


@functools.cache
def one_step(data, fields=()):
  """Returns (state, metrics) after a step, on random images."""
  config = quickstart_repa_e.get_config('irepa')
  # With a large epsilon AdamW moves by the gradient, not by its sign, which
  # rounding decides where the gradient is zero.
  config.update(
      {
          'image_size': 32,  # as the discriminator needs
          'adversarial_weight': 0.1,
          'diffusion_start': 0,
          'features': 'cached',
          'scan_layers': True,
          'batch_size': 16,
          'lr': 0.1,
          'vae_lr': 0.1,
          'discriminator_lr': 0.1,
          'adam_eps': 1.0,
      }
      | dict(fields)
  )
  mesh = sharding.make_mesh(data, 1, allow_subset=True)
  built = build.experiment(config, mesh)
  shapes = setup.abstract(built, config, mesh)
  k_init, k_train = setup.keys(config)
  step = setup.jit_step(built, config, mesh, None)
  state = setup.new_state(built, config, shapes.state, k_init)
  batch = benchmark.random_batch(shapes.batch, config.num_classes)
  return step(state, batch, ({},), k_train)


@pytest.mark.parametrize('name', MESHES)
def test_a_step_equals_that_of_one_device(name):
  data, fields = MESHES[name]
  state, metrics = one_step(data, tuple(fields.items()))
  alone, expected = one_step(1)
  assert set(metrics) == set(expected) and int(metrics['skipped']) == 0
  for key, value in expected.items():
    # Sums over 16 images in another order; means of logits are near zero.
    np.testing.assert_allclose(
        metrics[key], value, rtol=2e-5, atol=2e-6, err_msg=key
    )
  for part in ('params', 'ema', 'model_state'):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6),
        jax.tree.map(np.asarray, getattr(state, part)),
        jax.tree.map(np.asarray, getattr(alone, part)),
    )


def test_every_large_array_is_split_under_fsdp():
  data, fields = MESHES['fsdp']
  state, _ = one_step(data, tuple(fields.items()))
  large = [x for x in jax.tree.leaves(state) if x.size >= sharding.LARGE]
  assert len(large) > 20
  for x in large:
    shard = np.prod(x.sharding.shard_shape(x.shape))
    assert shard * data <= x.size, (x.shape, x.sharding)
