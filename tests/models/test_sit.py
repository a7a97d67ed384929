"""SiT against PyTorch outputs, official names and counts, and its variants."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.models import layers
from irepa_jax.models import sit
from irepa_jax.models import stack
from irepa_jax.weights import convert
from irepa_jax.weights import flax_files

NAMES = [f'SiT-{size}/{p}' for size in ('S', 'B', 'L', 'XL') for p in (2, 4, 8)]
TOLERANCE = dict(atol=2e-5, rtol=1e-4)  # golden outputs are of size 3
ORACLE = golden_files.load('sit_forward')
FIELDS = dict(width=48, depth=3, heads=3, num_classes=10, size=8, patch=2)
VARIANTS = {
    'scan': dict(scan_layers=True),
    'names': dict(remat='names'),
    'full': dict(remat='full'),
    'scan_names': dict(scan_layers=True, remat='names'),
    'hooks': dict(gather=lambda w: w, constrain=lambda x: x),
    'scan_hooks': dict(
        scan_layers=True, gather=lambda w: w, constrain=lambda x: x
    ),
}


def inputs(oracle=ORACLE):
  x = jnp.asarray(np.moveaxis(oracle['x'], 1, -1))
  return x, jnp.asarray(oracle['t']), jnp.asarray(oracle['y'], jnp.int32)


def network(**overrides):
  return sit.SiT(**({'align_depth': 2} | FIELDS | overrides))


@functools.cache
def weights():
  return convert.from_torch(network(), golden_files.subset(ORACLE, 'sd'))


def run(model, params, *args):
  return jax.jit(model.apply)({'params': params}, *args)


@functools.cache
def outcome(variant=None):
  """Returns output, tokens and parameter gradients of a variant."""
  model = network(**VARIANTS.get(variant, {}))

  def loss(params):
    output, tokens = model.apply({'params': params}, *inputs())
    return jnp.square(output).mean() + jnp.sin(tokens).mean(), (output, tokens)

  gradients, out = jax.jit(jax.grad(loss, has_aux=True))(weights())
  return *out, gradients


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_output_and_tokens_after_each_block_as_torch(depth):
  output, tokens = run(network(align_depth=depth), weights(), *inputs())
  wanted = np.moveaxis(ORACLE['velocity'], 1, -1)
  np.testing.assert_allclose(output, wanted, **TOLERANCE)
  wanted = ORACLE[f'block_out/{depth - 1}']
  np.testing.assert_allclose(tokens, wanted, **TOLERANCE)


def test_qk_norm_as_torch(golden):
  oracle = golden('sit_forward_qknorm')
  fields = dict(width=32, depth=2, heads=2, qk_norm=True)
  model = network(**fields)
  params = convert.from_official(model, None, golden_files.subset(oracle, 'sd'))
  output, _ = run(model, params['model'], *inputs(oracle))
  wanted = np.moveaxis(oracle['velocity'], 1, -1)
  np.testing.assert_allclose(output, wanted, **TOLERANCE)


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_way_to_run_gives_the_same_numbers(variant):
  found, wanted = outcome(variant), outcome()
  # The same sums in another order: a few steps of float32.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, found, wanted)


@pytest.mark.parametrize('scan', [False, True])
def test_recomputing_keeps_less(scan):
  def kept(remat):
    model = network(scan_layers=scan, remat=remat)
    f = lambda p: model.apply({'params': p}, *inputs())
    pull = jax.eval_shape(lambda p: jax.vjp(f, p)[1], weights())
    return sum(leaf.size for leaf in jax.tree.leaves(pull))

  assert kept('full') < kept('names') < kept('none')


@pytest.mark.parametrize('scan', [False, True])
def test_gather_sees_one_block_in_the_compute_dtype(scan):
  seen = []

  def gather(one):
    seen.append(jax.tree.map(lambda w: (w.shape, w.dtype), one))
    return one

  model = network(gather=gather, scan_layers=scan, dtype=jnp.bfloat16)
  jax.eval_shape(model.apply, {'params': weights()}, *inputs())
  block = jax.tree.map(
      lambda w: (w.shape, jnp.dtype(jnp.bfloat16)), weights()['blocks_0']
  )
  # A scan traces its body once: here one before the tap and one after it.
  assert seen == [block] * (2 if scan else 3)


def test_bfloat16_stays_near_float32():
  output, tokens, _ = outcome()
  params = weights()
  found = run(network(dtype=jnp.bfloat16), params, *inputs())
  for a, b in zip(found, (output, tokens), strict=True):
    error = np.float32(a) - b
    # About 20 roundings of 2^-9 on the way, adding up like a random walk.
    assert np.sqrt(np.mean(error**2) / np.mean(b**2)) < np.sqrt(20) * 2**-9
  assert found[0].dtype == jnp.float32


def test_weights_may_be_cast_once_before_sampling():
  model = network(dtype=jnp.bfloat16)
  cast = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), weights())
  found = run(model, cast, *inputs())
  wanted = run(model, weights(), *inputs())
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_position_table_gets_no_gradient():
  assert not outcome()[2]['pos_embed'].any()


def test_twice_the_channels_give_the_first_half():
  double = network(out_channels=8)
  shapes = convert.param_shapes(double)['final_layer']['linear']
  final = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
  half = weights()['final_layer']['linear']
  for name, array in half.items():  # [.. p p 4] into the first half of [.. 8]
    split = final[name].reshape(*array.shape[:-1], 4, 8)
    split[..., :4] = array.reshape(*array.shape[:-1], 4, 4)
    split[..., 4:] = 7.0
  layer = weights()['final_layer'] | {'linear': final}
  output, _ = run(double, weights() | {'final_layer': layer}, *inputs())
  np.testing.assert_allclose(output, outcome()[0], atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_parameter_counts_are_the_official_ones(name):
  counts = golden_files.load_json('arch_fingerprint')['SiT'][name]
  wanted = counts['conv_k3']['without_projector']
  if name.startswith('SiT-S'):
    # The official final layer keeps a width of 768 and cannot run at 384.
    features = models.sizes(name)['patch'] ** 2 * 4
    final = lambda d: d * 2 * d + 2 * d + d * features + features
    wanted += final(384) - final(768)
  shapes = convert.param_shapes(models.create(name))
  assert sum(s.size for s in jax.tree.leaves(shapes)) == wanted


@pytest.mark.parametrize(
    'name, key',
    [
        ('SiT-B/2', 'SiT-B/2_conv3_state_dict'),
        ('SiT-XL/2', 'SiT-XL/2_mlp_z1536_state_dict_first_and_last_block'),
    ],
)
def test_names_and_shapes_are_the_official_ones(name, key):
  wanted = golden_files.load_json('arch_fingerprint')[key]
  wanted = {k: v for k, v in wanted.items() if 'projectors' not in k}
  found = convert.torch_shapes(models.create(name))
  if 'first_and_last' in key:
    middle = [f'blocks.{i}.' for i in range(1, 27)]
    found = {k: v for k, v in found.items() if not k.startswith(tuple(middle))}
  assert {k: list(v) for k, v in found.items()} == wanted


def test_names_and_shapes_of_mean_flow_are_the_official_ones():
  stored = golden_files.load_json('meanflow_fingerprint')['DiT_B_4_params']
  empty = {k: np.zeros(shape, bool) for k, shape in stored.items()}
  wanted = {k: v.shape for k, v in flax_files.state_dict(empty).items()}
  found = convert.torch_shapes(models.create('SiT-B/4', durations=True))
  assert found.pop('pos_embed') == (1, 64, 768)
  assert found == wanted


def test_initial_weights():
  params = jax.jit(network().init)(jax.random.key(0), *inputs())['params']
  block, final = params['blocks_1'], params['final_layer']
  for zero in (block['adaLN_modulation_1'], final):
    assert not any(w.any() for w in jax.tree.leaves(zero))
  for layer in (block['attn']['qkv'], block['mlp']['fc1']):
    fans = sum(layer['kernel'].shape)  # qkv counts as one matrix
    is_uniform(layer['kernel'], np.sqrt(6 / fans))
    assert not layer['bias'].any()
  patches = params['x_embedder']['proj']['kernel']
  is_uniform(patches, np.sqrt(6 / (2 * 2 * 4 + 48)))
  tables = (
      params['y_embedder']['embedding_table'],
      params['t_embedder']['mlp_0'],
  )
  for table in map(jax.tree.leaves, tables):
    # 5 standard errors of the standard deviation of n samples.
    bound = 5 / np.sqrt(2 * table[-1].size)
    assert abs(table[-1].std() / 0.02 - 1) < bound
  wanted = layers.sincos_2d(48, 4)[None]
  np.testing.assert_array_equal(params['pos_embed'], wanted)


def is_uniform(array, bound):
  """Fills +-bound, with the standard deviation of a uniform draw."""
  assert 0.98 * bound < abs(array).max() <= bound
  error = 5 / np.sqrt(2 * array.size)
  assert abs(array.std() * np.sqrt(3) / bound - 1) < error


@pytest.mark.parametrize('name', ['SiT-XXL/2', 'SiT-B/3', 'SiT-B', 'DiT-B/2'])
def test_unknown_names_are_refused_with_the_known_ones(name):
  with pytest.raises(errors.UsageError, match=f'{name}.*XL.*1,2,4,8'):
    models.create(name)


def test_tap_beyond_the_last_block_is_refused():
  with pytest.raises(errors.UsageError, match='align_depth is 13.*1 to 12'):
    models.create('SiT-B/2', align_depth=13)
  assert models.create('SiT-B/2', depth=3).align_depth == 3


def test_stacks_run_alike_without_blocks():
  x = jnp.ones((1, 2, 3))
  for scan in (False, True):
    plan = stack.Plan(scan=scan)
    assert stack.run(None, [], x, None, plan) is x
