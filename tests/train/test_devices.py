"""One training step is the same on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uncached

from configs import quickstart
from configs import quickstart_jit
from configs import quickstart_meanflow
from irepa_jax import build
from irepa_jax.distributed import sharding
from irepa_jax.jobs import setup
from irepa_jax.tools.benchmarks import step as benchmark

# name: (data, model, fields of the configuration)
MESHES = {
    'data': (8, 1, {'fsdp': False}),
    'fsdp': (8, 1, {'fsdp': True}),
    'tensor': (4, 2, {'fsdp': False}),
    'both': (4, 2, {'fsdp': True}),
    'scan_remat': (8, 1, {'fsdp': True, 'scan_layers': True, 'remat': 'names'}),
    'accumulate': (2, 1, {'fsdp': True, 'accumulate': 2, 'remat': 'full'}),
    'groups': (4, 1, {'fsdp': True}),
    'over_groups': (8, 1, {'fsdp': True}),
}
# Devices 0 to 3 share a fast network and 4 to 7 another: copies of the weights.
GROUPS = {'groups': 2, 'over_groups': 1}
DROPOUT = {'attn_dropout': 0.1, 'proj_dropout': 0.2}
# Of MeanFlow a quarter of the rows, 8 of 32, goes through the forward product.
MEAN_FLOW = {'batch_size': 32}


# What XLA says where it has to replicate an array to change its sharding.
WARNING = 'Involuntary full rematerialization'


def prepared(data, model, fields, recipe=quickstart, replica=1):
  """Returns the step and its arguments, on random images and latents."""
  config = recipe.get_config('irepa')
  # With a large epsilon AdamW moves by the gradient, not by its sign, which
  # rounding decides where the gradient is zero.
  config.update({'batch_size': 16, 'lr': 0.1, 'adam_eps': 1.0} | dict(fields))
  mesh = sharding.make_mesh(data, model, replica, allow_subset=True)
  built = build.experiment(config, mesh)
  shapes = setup.abstract(built, config, mesh)
  k_init, k_train = setup.keys(config)
  ones = (1.0,) * built.model.channels
  step = setup.jit_step(built, config, mesh, benchmark.Statistics(ones, ones))
  state = setup.new_state(built, config, shapes.state, k_init)
  batch = benchmark.random_batch(shapes.batch, config.num_classes)
  return step, (state, batch, ({},), k_train)


@functools.cache
def one_step(data, model, fields=(), recipe=quickstart, replica=1):
  """Returns (state, metrics) after a step."""
  step, arguments = prepared(data, model, fields, recipe, replica)
  return step(*arguments)


@pytest.mark.parametrize('name', MESHES)
def test_a_step_equals_that_of_one_device(name, monkeypatch):
  data, model, fields = MESHES[name]
  alone = one_step(1, 1)
  if name in GROUPS:
    monkeypatch.setattr(sharding, 'group', lambda device: device.id // 4)
  fields = tuple(fields.items())
  replica = GROUPS.get(name, 1)
  assert_same_step(one_step(data, model, fields, replica=replica), alone)


@pytest.mark.parametrize('name', ['both', 'scan_remat', 'accumulate'])
def test_dropout_on_pixels_is_the_same_on_every_mesh(name):
  data, model, fields = MESHES[name]
  step = lambda data, model, fields: one_step(
      data, model, tuple(fields.items()), quickstart_jit
  )
  dropped = step(1, 1, DROPOUT)
  assert_same_step(step(data, model, fields | DROPOUT), dropped)


@pytest.mark.parametrize('name', ['both', 'accumulate'])
def test_mean_flow_is_the_same_on_every_mesh(name):
  data, model, fields = MESHES[name]
  step = lambda data, model, fields: one_step(
      data, model, tuple((fields | MEAN_FLOW).items()), quickstart_meanflow
  )
  assert_same_step(step(data, model, fields), step(1, 1, {}))


def assert_same_step(found, wanted):
  (state, metrics), (alone, expected) = found, wanted
  for key in expected:
    # Sums over 16 images in another order: a few units of 2^-23. A mean of
    # cosines may be near zero.
    np.testing.assert_allclose(
        metrics[key], expected[key], rtol=3e-6, atol=1e-7
    )
  for tree, other in ((state.params, alone.params), (state.ema, alone.ema)):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.tree.map(np.asarray, tree),
        jax.tree.map(np.asarray, other),
    )


@pytest.mark.parametrize('name', ['fsdp', 'both', 'scan_remat'])
def test_no_large_array_stays_whole_under_fsdp(name):
  data, model, fields = MESHES[name]
  state, _ = one_step(data, model, tuple(fields.items()))
  large = [x for x in jax.tree.leaves(state) if x.size >= sharding.LARGE]
  assert len(large) > 20
  for x in large:
    shard = np.prod(x.sharding.shard_shape(x.shape))
    assert shard * data <= x.size, (x.shape, x.sharding)


@pytest.mark.parametrize(
    'name, recipe',
    [(name, quickstart) for name in ('tensor', 'both', 'scan_remat')]
    + [('both', quickstart_meanflow)],
)
def test_no_array_is_replicated_to_change_its_sharding(name, recipe, capfd):
  data, model, fields = MESHES[name]
  step, arguments = prepared(data, model, tuple(fields.items()), recipe)
  with uncached.uncached():
    step.lower(*arguments).compile()
  assert WARNING not in capfd.readouterr().err


def test_the_warning_of_the_compiler_is_seen(capfd):
  mesh = sharding.make_mesh(4, 2)
  spec = jax.sharding.PartitionSpec
  pin = lambda x, *axes: jax.lax.with_sharding_constraint(
      x, jax.sharding.NamedSharding(mesh, spec(*axes))
  )
  turn = lambda x: pin(jnp.sin(pin(x, 'data')), None, 'model')
  with uncached.uncached():
    jax.jit(turn).lower(jnp.zeros((64, 64))).compile()
  assert WARNING in capfd.readouterr().err
