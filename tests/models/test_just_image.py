"""JiT against PyTorch outputs, official names and counts, and its variants."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jit

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.diffusion import objectives
from irepa_jax.models import flops
from irepa_jax.models import just_image
from irepa_jax.models import layers
from irepa_jax.weights import convert

NAMES = [f'JiT-{size}/{p}' for size in ('B', 'L', 'H') for p in (16, 32)]
TOLERANCE = dict(atol=3e-5, rtol=1e-4)  # golden outputs are of size 3
ORACLE = golden_files.load('jit_forward')
CASES = ORACLE['meta']['args']


@pytest.mark.parametrize('case', CASES)
def test_images_and_tokens_as_torch(case):
  """The tap lies before and after the class tokens joined."""
  model, projector, params = tiny_jit.build(ORACLE, case)
  x, tokens = jax.jit(tiny_jit.network(model, params))(*inputs())
  np.testing.assert_allclose(x, tiny_jit.last(ORACLE['x_pred']), **TOLERANCE)
  stored = golden_files.subset(ORACLE, f'case/{case}')
  np.testing.assert_allclose(tokens, stored['zs_original'], **TOLERANCE)
  (projected,) = projector.apply({'params': params['projector']}, tokens)
  np.testing.assert_allclose(projected, stored['zs/0'], **TOLERANCE)


def inputs():
  x = tiny_jit.last(ORACLE['x'])
  return x, 1 - jnp.asarray(ORACLE['t']), jnp.asarray(ORACLE['y'], jnp.int32)


VARIANTS = {
    'scan': dict(scan_layers=True),
    'names': dict(remat='names'),
    'scan_full': dict(scan_layers=True, remat='full'),
    'scan_names_hooks': dict(
        scan_layers=True,
        remat='names',
        gather=lambda w: w,
        constrain=lambda x: x,
    ),
}
DROPOUT = golden_files.load('jit_train3_context_dropout')


@functools.cache
def outcome(variant=None):
  """Returns output, tokens and gradients under drawn dropout."""
  model, _, params = tiny_jit.build(DROPOUT, **VARIANTS.get(variant, {}))
  x, draw = tiny_jit.drawn(
      golden_files.subset(DROPOUT, 'step0'), DROPOUT['meta']['args']
  )
  keys = jax.random.split(jax.random.key(1), len(x))
  keep = functools.partial(objectives.kept, keys)

  def loss(params):
    output, tokens = tiny_jit.network(model, params)(x, draw.t, draw.y, keep)
    return jnp.square(output).mean() + jnp.sin(tokens).mean(), (output, tokens)

  params = params | {'projector': {}}
  gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
  return *out, gradients


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_way_to_run_gives_the_same_numbers(variant):
  """The masks of a block that is computed again are the same again."""
  found, wanted = outcome(variant), outcome()
  # The same sums in another order: a few steps of float32.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, found, wanted)


def test_recomputing_keeps_less_and_no_masks():
  def kept(remat):
    model, _, params = tiny_jit.build(DROPOUT, scan_layers=True, remat=remat)
    x, t, y = (jnp.zeros((2, *s.shape[1:]), s.dtype) for s in model.example_inputs())
    keys = jax.random.split(jax.random.key(1), 2)
    keep = functools.partial(objectives.kept, keys)
    f = lambda p: tiny_jit.network(model, p)(x, t, y, keep)
    pull = jax.eval_shape(lambda p: jax.vjp(f, p)[1], params)
    leaves = jax.tree.leaves(pull)
    masks = [x for x in leaves if x.dtype == bool and x.ndim > 2]
    return sum(x.size for x in leaves), len(masks)

  (full, _), (names, masks), (none, stored) = map(kept, ('full', 'names', 'none'))
  assert full < names < none
  assert stored and not masks


def test_dropout_is_in_the_middle_half_of_the_blocks():
  seen = []

  def keep(block, place, probability, shape):
    seen.append((int(block), place, probability, len(shape)))
    return jnp.ones(shape, bool)

  model, _, params = tiny_jit.build(DROPOUT)
  x, t, y = (jnp.zeros((2, *s.shape[1:]), s.dtype) for s in model.example_inputs())
  tiny_jit.network(model, params)(x, t, y, keep)
  places = [('attn_weights', 0.9, 4), ('attn_out', 0.8, 3), ('mlp_hidden', 0.8, 3)]
  assert seen == [(i, *place) for i in (1, 2) for place in places]


def test_without_dropout_nothing_is_drawn():
  model, _, params = tiny_jit.build(ORACLE, 'mlp_after_context')
  keep = lambda *args: pytest.fail('the rates are 0')
  tiny_jit.network(model, params)(*inputs(), keep)


@pytest.mark.parametrize('prefix', [0, 5])
def test_turned_by_place_as_torch(golden, prefix):
  oracle = golden('jit_rope_rmsnorm')
  name = f'rope/8_4_{prefix}'
  angles = just_image.rotary_angles(16, 4, prefix)
  np.testing.assert_allclose(np.cos(angles), oracle[f'{name}/cos'], atol=1e-6)
  np.testing.assert_allclose(np.sin(angles), oracle[f'{name}/sin'], atol=1e-6)
  q = jnp.swapaxes(jnp.asarray(oracle[f'{name}/q']), 1, 2)
  found = jnp.swapaxes(just_image.turned(q, angles), 1, 2)
  np.testing.assert_allclose(found, oracle[f'{name}/out'], atol=1e-6)


def test_angles_of_the_published_size(golden):
  oracle = golden('jit_rope_rmsnorm')
  angles = just_image.rotary_angles(64, 16, 32)
  for f, key in ((np.cos, 'cos'), (np.sin, 'sin')):
    np.testing.assert_allclose(
        f(angles), oracle[f'rope/32_16_32/{key}'], atol=3e-6
    )


def test_norms_as_torch(golden):
  oracle = golden('jit_rope_rmsnorm')
  x, weight = (jnp.asarray(oracle[f'rmsnorm/{k}']) for k in ('x', 'weight'))
  params = {'params': {'scale': weight}}
  found = just_image.RMSNorm().apply(params, x)
  np.testing.assert_allclose(found, oracle['rmsnorm/out'], atol=1e-6)
  zeros = jnp.zeros((len(x), x.shape[-1]))
  found = just_image.ModulatedNorm().apply(params, x, zeros, zeros)
  np.testing.assert_allclose(found, oracle['rmsnorm/out'], atol=1e-6)


def test_weights_may_be_cast_once_before_sampling():
  model, _, params = tiny_jit.build(
      ORACLE, 'mlp_after_context', dtype=jnp.bfloat16
  )
  cast = layers.cast(params, jnp.bfloat16)
  found, wanted = (
      jax.jit(tiny_jit.network(model, p))(*inputs()) for p in (cast, params)
  )
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  error = np.float32(wanted[0]) - tiny_jit.last(ORACLE['x_pred'])
  scale = np.sqrt(np.mean(ORACLE['x_pred'] ** 2))
  # About 20 roundings of 2^-9 on the way, adding up like a random walk.
  assert np.sqrt(np.mean(error**2)) / scale < np.sqrt(20) * 2**-9


@pytest.mark.parametrize('name', NAMES)
def test_parameter_counts_are_the_official_ones(name):
  wanted = golden_files.load_json('arch_fingerprint')['JiT'][name]['none']
  shapes = convert.param_shapes(models.create(name))
  assert sum(s.size for s in jax.tree.leaves(shapes)) == wanted['total']


def test_names_and_shapes_are_the_official_ones():
  wanted = golden_files.load_json('arch_fingerprint')[
      'JiT-B/16_conv3_denoiser_state_dict'
  ]
  wanted = {k: v for k, v in wanted.items() if 'projectors' not in k}
  found = convert.torch_shapes(models.create('JiT-B/16'))
  assert {f'net.{k}': list(v) for k, v in found.items()} == wanted


@pytest.mark.parametrize(
    'name, size, gflop',
    [
        ('JiT-B/16', 256, 50.4),
        ('JiT-B/32', 512, 51.5),
        ('JiT-L/16', 256, 175.9),
        ('JiT-L/32', 512, 177.2),
        ('JiT-H/16', 256, 363.9),
        ('JiT-H/32', 512, 365.7),
        ('JiT-G/16', 256, 767.5),
    ],
)
def test_flops_are_the_derived_ones(name, size, gflop):
  found = flops.model(models.create(name, size=size)) / 1e9
  np.testing.assert_allclose(found, gflop, rtol=0.01)


def test_initial_weights():
  model = models.create('JiT-T/4', size=16, depth=2, align_depth=1)
  arguments = [jnp.zeros(s.shape, s.dtype) for s in model.example_inputs()]
  params = jax.jit(model.init)(jax.random.key(0), *arguments)['params']
  block, final = params['blocks_1'], params['final_layer']
  for zero in (
      block['adaLN_modulation_1'],
      final['adaLN_modulation_1'],
      final['linear'],
  ):
    assert not any(w.any() for w in jax.tree.leaves(zero))
  for norm in (block['norm1'], block['attn']['q_norm'], final['norm_final']):
    assert (norm['scale'] == 1).all()
  for layer in (block['attn']['qkv'], block['mlp']['w12'], block['mlp']['w3']):
    is_uniform(layer['kernel'], np.sqrt(6 / sum(layer['kernel'].shape)))
    assert not layer['bias'].any()
  embed = params['x_embedder']
  assert 'bias' not in embed['proj1']
  is_uniform(embed['proj1']['kernel'], np.sqrt(6 / (4 * 4 * 3 + 16)))
  is_uniform(embed['proj2']['kernel'], np.sqrt(6 / (16 + 64)))
  tables = (
      params['in_context_posemb'],
      params['y_embedder']['embedding_table']['embedding'],
      params['t_embedder']['mlp_0']['kernel'],
  )
  for table in tables:
    # 5 standard errors of the standard deviation of n samples.
    assert abs(table.std() / 0.02 - 1) < 5 / np.sqrt(2 * table.size)
  wanted = layers.sincos_2d(64, 4)[None]
  np.testing.assert_array_equal(params['pos_embed'], wanted)


def is_uniform(array, bound):
  """Fills +-bound, with the standard deviation of a uniform draw."""
  assert 0.97 * bound < abs(array).max() <= bound
  error = 5 / np.sqrt(2 * array.size)
  assert abs(array.std() * np.sqrt(3) / bound - 1) < error


@pytest.mark.parametrize('name', ['JiT-XL/16', 'JiT-B/3', 'JiT-B', 'JIT-B/16'])
def test_unknown_names_are_refused_with_the_known_ones(name):
  with pytest.raises(errors.UsageError, match=f'{name}.*JiT-.T,B,L,H,G'):
    models.create(name)
