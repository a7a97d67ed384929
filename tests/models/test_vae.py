"""The autoencoder against outputs of the official code, and its layouts."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.models import vae
from irepa_jax.models import vae_layouts
from irepa_jax.weights import convert

# Two float32 implementations of the same convolutions; values are of order 1.
ATOL, RTOL = 5e-5, 1e-4

SMALL = {'width': 32, 'multipliers': (1, 1, 2)}
FULL = {
    'VAE_F8D4': {},
    'VAE_F16D32': {
        'multipliers': (1, 1, 2, 2, 4),
        'channels': 32,
        'attention_levels': (4,),
    },
}


@pytest.fixture(scope='module')
def oracle():
  """The small official autoencoder: (module, state dict, encode, decode)."""
  encode = golden_files.load('vae_encode')
  decode = golden_files.load('vae_decode')
  state_dict = golden_files.subset(encode, 'sd')
  state_dict |= golden_files.subset(decode, 'sd')
  return vae.VAE(**SMALL), state_dict, encode, decode


def nhwc(x):
  return np.moveaxis(x, 1, -1)


def run(module, params, x, method):
  return jax.jit(lambda p, x: module.apply({'params': p}, x, method=method))(
      params, x
  )


def test_encode_equals_official(oracle):
  module, state_dict, golden, _ = oracle
  params = convert.from_torch(module, state_dict)
  raw = run(module, params, nhwc(golden['x']), 'encode')
  np.testing.assert_allclose(raw, nhwc(golden['moments']), RTOL, ATOL)
  mean, std = vae.posterior(raw)
  np.testing.assert_allclose(mean, nhwc(golden['mean']), RTOL, ATOL)
  np.testing.assert_allclose(std, nhwc(golden['std']), RTOL, ATOL)
  sample = mean + std * nhwc(golden['draw_noise'])
  np.testing.assert_allclose(sample, nhwc(golden['sample']), RTOL, ATOL)


def test_encoder_before_quantisation_equals_official(oracle):
  module, state_dict, golden, _ = oracle
  params = convert.from_torch(module, state_dict)
  out = run(module, params, nhwc(golden['x']), lambda m, x: m.encoder(x))
  np.testing.assert_allclose(out, nhwc(golden['encoder_out']), RTOL, ATOL)


def test_moments_are_the_mean_and_deviation_that_data_sets_store(oracle):
  module, state_dict, golden, _ = oracle
  params = convert.from_torch(module, state_dict)
  moments = run(module, params, nhwc(golden['x']), 'moments')
  stored = nhwc(golden['dataset_moments_mean_std'])
  np.testing.assert_allclose(moments, stored, RTOL, ATOL)


def test_decode_equals_official(oracle):
  module, state_dict, _, golden = oracle
  params = convert.from_torch(module, state_dict)
  x = run(module, params, nhwc(golden['z']), 'decode')
  np.testing.assert_allclose(x, nhwc(golden['decoded']), RTOL, ATOL)


def test_logvar_is_clamped(oracle):
  _, _, golden, _ = oracle
  _, std = vae.posterior(nhwc(golden['clamp/params']))
  expected = nhwc(golden['clamp/std'])
  np.testing.assert_allclose(std, expected, rtol=1e-6)
  logvar = nhwc(golden['clamp/logvar'])
  assert {logvar.min(), logvar.max()} == {vae.LOGVAR_MIN, vae.LOGVAR_MAX}


def test_torch_round_trip_is_bit_exact(oracle):
  module, state_dict, _, _ = oracle
  back = convert.to_torch(module, convert.from_torch(module, state_dict))
  assert back.keys() == state_dict.keys()
  assert all(np.array_equal(back[key], state_dict[key]) for key in back)


def test_bfloat16_stays_near_float32(oracle):
  module, state_dict, golden, _ = oracle
  params = convert.from_torch(module, state_dict)
  low = module.clone(dtype=jnp.bfloat16)
  x = nhwc(golden['x'])
  out = run(low, params, x, 'moments')
  assert out.dtype == jnp.float32
  exact = run(module, params, x, 'moments')
  # bfloat16 has 8 significant bits, and about 30 layers follow one another.
  assert np.abs(out - exact).mean() < 0.03 * np.abs(exact).mean()


@pytest.mark.parametrize('name', FULL)
def test_full_size_has_the_official_keys_and_shapes(name):
  keys = golden_files.load_json('vae_f8d4_keys')
  state_dict = blank(keys[name])
  module = vae.VAE(**FULL[name])
  params = convert.from_torch(module, state_dict)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == keys[f'{name}_param_count']


@pytest.mark.parametrize('name', FULL)
def test_full_size_halves_the_grid_once_per_level(name):
  module = vae.VAE(**FULL[name])
  x = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
  params = convert.param_shapes(module)
  side = 256 // module.factor
  apply = lambda p, x, method: module.apply({'params': p}, x, method=method)
  z = jax.eval_shape(lambda p, x: apply(p, x, 'moments'), params, x)
  assert z.shape == (2, side, side, 2 * module.channels)
  z = jax.ShapeDtypeStruct((2, side, side, module.channels), jnp.float32)
  x = jax.eval_shape(lambda p, z: apply(p, z, 'decode'), params, z)
  assert x.shape == (2, 256, 256, 3)


@pytest.mark.parametrize('damage', ['missing', 'extra', 'misshapen'])
def test_a_damaged_state_dict_is_refused_by_name(oracle, damage):
  module, state_dict, _, _ = oracle
  state_dict = dict(state_dict)
  name = 'decoder.up.1.upsample.conv.weight'
  if damage == 'missing':
    del state_dict[name]
  elif damage == 'extra':
    name = 'decoder.up.0.upsample.conv.weight'
    state_dict[name] = np.zeros((32, 32, 3, 3), np.float32)
  else:
    state_dict[name] = state_dict[name][:, :, :1]
  with pytest.raises(errors.DataError, match=name):
    convert.from_torch(module, state_dict)


def blank(shapes):
  """Zeros that take no memory, of the shapes of a state dict."""
  zero = np.zeros((), np.float32)
  return {key: np.broadcast_to(zero, shape) for key, shape in shapes.items()}


# Names of diffusers' AutoencoderKL for each official prefix of the small model
# (three levels; diffusers counts the decoder's levels from the deepest).
DOWN, UP = 'downsamplers.0.conv', 'upsamplers.0.conv'
OUTER = {
    'encoder.conv_in': 'encoder.conv_in',
    'encoder.conv_out': 'encoder.conv_out',
    'encoder.norm_out': 'encoder.conv_norm_out',
    'encoder.down.0.downsample.conv': f'encoder.down_blocks.0.{DOWN}',
    'encoder.down.1.downsample.conv': f'encoder.down_blocks.1.{DOWN}',
    'decoder.conv_in': 'decoder.conv_in',
    'decoder.conv_out': 'decoder.conv_out',
    'decoder.norm_out': 'decoder.conv_norm_out',
    'decoder.up.2.upsample.conv': f'decoder.up_blocks.0.{UP}',
    'decoder.up.1.upsample.conv': f'decoder.up_blocks.1.{UP}',
    'quant_conv': 'quant_conv',
    'post_quant_conv': 'post_quant_conv',
}
BLOCKS = {
    'encoder.down.0.block': 'encoder.down_blocks.0.resnets',
    'encoder.down.1.block': 'encoder.down_blocks.1.resnets',
    'encoder.down.2.block': 'encoder.down_blocks.2.resnets',
    'encoder.mid.block_1': 'encoder.mid_block.resnets.0',
    'encoder.mid.block_2': 'encoder.mid_block.resnets.1',
    'decoder.mid.block_1': 'decoder.mid_block.resnets.0',
    'decoder.mid.block_2': 'decoder.mid_block.resnets.1',
    'decoder.up.2.block': 'decoder.up_blocks.0.resnets',
    'decoder.up.1.block': 'decoder.up_blocks.1.resnets',
    'decoder.up.0.block': 'decoder.up_blocks.2.resnets',
}
ATTENTIONS = {
    'encoder.mid.attn_1': 'encoder.mid_block.attentions.0',
    'decoder.mid.attn_1': 'decoder.mid_block.attentions.0',
}
INNER = {
    'new': {'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'proj_out': 'to_out.0'},
    'old': {'q': 'query', 'k': 'key', 'v': 'value', 'proj_out': 'proj_attn'},
}


def to_diffusers(state_dict, kind):
  return dict(diffusers_entry(k, v, kind) for k, v in state_dict.items())


def diffusers_entry(key, value, kind):
  layer, leaf = key.rsplit('.', 1)
  if layer in OUTER:
    return f'{OUTER[layer]}.{leaf}', value
  for official, name in BLOCKS.items():
    if layer.startswith(official + '.'):
      rest = layer.removeprefix(official).replace('nin_', 'conv_')
      return f'{name}{rest}.{leaf}', value
  stem, part = layer.rsplit('.', 1)
  if part == 'norm':
    return f'{ATTENTIONS[stem]}.group_norm.{leaf}', value
  part = INNER[kind][part]
  return f'{ATTENTIONS[stem]}.{part}.{leaf}', value.reshape(value.shape[:2])


@pytest.mark.parametrize('kind', INNER)
def test_diffusers_layout_holds_the_same_model(oracle, kind):
  _, state_dict, _, _ = oracle
  renamed = to_diffusers(state_dict, kind)
  assert len(renamed) == len(state_dict)
  entries = vae_layouts.official_names(renamed, levels=3)
  assert entries.keys() == state_dict.keys()
  assert all(np.array_equal(entries[k], state_dict[k]) for k in state_dict)


def test_diffusers_attention_inside_levels_is_renamed():
  names = {
      'encoder.down_blocks.4.attentions.1.to_q.weight': (
          'encoder.down.4.attn.1.q.weight'
      ),
      'decoder.up_blocks.0.attentions.2.to_out.0.bias': (
          'decoder.up.4.attn.2.proj_out.bias'
      ),
  }
  entries = vae_layouts.official_names({k: np.zeros((2, 2)) for k in names}, levels=5)
  assert list(entries) == list(names.values())
  assert entries['encoder.down.4.attn.1.q.weight'].shape == (2, 2, 1, 1)


def test_two_attention_layouts_in_one_file_are_refused(oracle):
  _, state_dict, _, _ = oracle
  both = to_diffusers(state_dict, 'new') | to_diffusers(state_dict, 'old')
  with pytest.raises(errors.DataError, match='two tensors'):
    vae_layouts.official_names(both, levels=3)


@pytest.mark.parametrize('wrapper', vae_layouts.WRAPPERS)
def test_a_training_checkpoint_is_unwrapped(oracle, wrapper):
  _, state_dict, _, _ = oracle
  entries = vae_layouts.official_names({wrapper: state_dict, 'epoch': 3}, levels=3)
  assert entries.keys() == state_dict.keys()


def test_the_layout_of_diffusers_is_written_as_it_is_read(oracle):
  _, state_dict, _, _ = oracle
  made = vae_layouts.to_diffusers(state_dict, levels=3)
  expected = to_diffusers(state_dict, 'new')
  assert made.keys() == expected.keys()
  assert all(np.array_equal(made[k], expected[k]) for k in made)


@pytest.mark.parametrize('name', FULL)
def test_both_layouts_hold_the_full_size(name):
  state_dict = blank(golden_files.load_json('vae_f8d4_keys')[name])
  levels = len(FULL[name].get('multipliers', (1, 2, 4, 4)))
  made = vae_layouts.to_diffusers(state_dict, levels)
  back = vae_layouts.official_names(made, levels)
  assert {k: v.shape for k, v in back.items()} == {
      k: v.shape for k, v in state_dict.items()
  }
