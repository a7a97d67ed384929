"""One training step is the same on every mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
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
}
# Of MeanFlow a quarter of the rows, 8 of 32, goes through the forward product.
FLOW, MEAN_FLOW = 'flow', 'mean_flow'
CONFIGS = {FLOW: (quickstart, 16), MEAN_FLOW: (quickstart_meanflow, 32)}
CASES = [(FLOW, name) for name in MESHES]
CASES += [(MEAN_FLOW, 'both'), (MEAN_FLOW, 'accumulate')]


# What XLA says where it has to replicate an array to change its sharding.
WARNING = 'Involuntary full rematerialization'


def prepared(kind, data, model, fields):
  """Returns the step and its arguments, on random images and latents."""
  file, rows = CONFIGS[kind]
  config = file.get_config('irepa')
  # With a large epsilon AdamW moves by the gradient, not by its sign, which
  # rounding decides where the gradient is zero.
  config.update({'batch_size': rows, 'lr': 0.1, 'adam_eps': 1.0} | dict(fields))
  mesh = sharding.make_mesh(data, model, allow_subset=True)
  built = build.experiment(config, mesh)
  shapes = setup.abstract(built, config, mesh)
  k_init, k_train = setup.keys(config)
  ones = (1.0,) * built.model.channels
  step = setup.jit_step(built, config, mesh, benchmark.Statistics(ones, ones))
  state = setup.new_state(built, config, shapes.state, k_init)
  batch = benchmark.random_batch(shapes.batch, config.num_classes)
  return step, (state, batch, ({},), k_train)


@functools.cache
def one_step(kind, data, model, fields=()):
  """Returns (state, metrics) after a step."""
  step, arguments = prepared(kind, data, model, fields)
  return step(*arguments)


@pytest.mark.parametrize('kind, name', CASES)
def test_a_step_equals_that_of_one_device(kind, name):
  data, model, fields = MESHES[name]
  state, metrics = one_step(kind, data, model, tuple(fields.items()))
  alone, expected = one_step(kind, 1, 1)
  for key in expected:
    # Sums over 16 images in another order: a few units of 2^-23.
    np.testing.assert_allclose(metrics[key], expected[key], rtol=3e-6)
  for tree, other in ((state.params, alone.params), (state.ema, alone.ema)):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.tree.map(np.asarray, tree),
        jax.tree.map(np.asarray, other),
    )


@pytest.mark.parametrize('name', ['fsdp', 'both', 'scan_remat'])
def test_no_large_array_stays_whole_under_fsdp(name):
  data, model, fields = MESHES[name]
  state, _ = one_step(FLOW, data, model, tuple(fields.items()))
  large = [x for x in jax.tree.leaves(state) if x.size >= sharding.LARGE]
  assert len(large) > 20
  for x in large:
    shard = np.prod(x.sharding.shard_shape(x.shape))
    assert shard * data <= x.size, (x.shape, x.sharding)


@pytest.mark.parametrize(
    'kind, name',
    [(FLOW, n) for n in ('tensor', 'both', 'scan_remat')]
    + [(MEAN_FLOW, 'both')],
)
def test_no_array_is_replicated_to_change_its_sharding(kind, name, capfd):
  data, model, fields = MESHES[name]
  step, arguments = prepared(kind, data, model, tuple(fields.items()))
  with uncached():
    step.lower(*arguments).compile()
  assert WARNING not in capfd.readouterr().err


def test_the_warning_of_the_compiler_is_seen(capfd):
  mesh = sharding.make_mesh(4, 2)
  spec = jax.sharding.PartitionSpec
  pin = lambda x, *axes: jax.lax.with_sharding_constraint(
      x, jax.sharding.NamedSharding(mesh, spec(*axes))
  )
  turn = lambda x: pin(jnp.sin(pin(x, 'data')), None, 'model')
  with uncached():
    jax.jit(turn).lower(jnp.zeros((64, 64))).compile()
  assert WARNING in capfd.readouterr().err


@contextlib.contextmanager
def uncached():
  """Compiles anew, so that the compiler says what it has to say."""
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
