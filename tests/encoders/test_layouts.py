"""Weight files as people have them: every layout, every key, or an error."""

import re

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.encoders import layouts
from irepa_jax.encoders import unpack
from irepa_jax.encoders import zoo
from irepa_jax.weights import files

HUGGING_FACE = {
    'dino-vit-b': 'hf_vit_dino',
    'dinov2reg-vit-b': 'hf_dinov2_registers',
    'dinov2-vit-b': 'hf_dinov2_webssl',
    'webssl-vit-dino300m_full2b_224': 'hf_dinov2_webssl_swiglu',
    'dinov3-vit-b16': 'hf_dinov3_mlp',
    'dinov3-vit-h16plus': 'hf_dinov3_gated',
    'jepa-vit-h': 'hf_ijepa',
    'mae-vit-l': 'hf_vitmae',
    'siglip-vit-b': 'hf_siglip',
    'clip-vit-L': 'hf_clip',
}
OFFICIAL = {
    'dinov2reg-vit-b': 'enc_dinov2reg',
    'dinov3-vit-b16': 'enc_dinov3_b',
    'dinov3-vit-h16plus': 'enc_dinov3_hplus',
    'mocov3-vit-b': 'enc_mocov3',
    'clip-vit-L': 'enc_clip',
    'langpe-vit-l': 'enc_pe_lang_l_cls_ls',
}


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_files_of_hugging_face_give_their_tokens(name):
  oracle = golden_files.load(HUGGING_FACE[name])
  spec = zoo.find(name)
  settings = dict(oracles.TINY)
  if 'dinov3' in name:
    settings['rope_periods_dtype'] = 'float32'
  if name == 'dino-vit-b':
    settings['epsilon'] = 1e-12  # of the configuration behind this oracle
  module = spec.module.clone(grid=(4, 4), **settings)
  params = unpack.parameters(spec, module, oracles.weights(HUGGING_FACE[name]))
  x = oracle['x'].transpose(0, 2, 3, 1)
  tokens = jax.jit(module.apply)({'params': params}, x)[:, module.prefix :]
  key = 'pre_norm_patchtokens' if name == 'mae-vit-l' else 'patchtokens'
  np.testing.assert_allclose(tokens, oracle[key], atol=2e-5)


def live_names():
  try:
    import huggingface
  except ImportError:
    return []
  return list(huggingface.FAMILIES)


@pytest.mark.parametrize('name', live_names())
def test_saved_models_of_transformers_give_their_tokens(name, tmp_path):
  import huggingface

  network = huggingface.model(name)
  network.save_pretrained(tmp_path)
  spec = zoo.find(name)
  settings = dict(depth=2, width=64, heads=2)
  if 'dinov3' in name:
    settings['rope_periods_dtype'] = 'float32'
  if 'so400m' in name or '7b16' in name:
    settings['mlp_ratio'] = 4
  resolution = 256 if spec.resolutions else 512
  images = oracles.images()
  images = images if spec.resolutions else oracles.large_images()[:1]
  encoder = encoders.create(name, resolution=resolution, **settings)
  params = encoder.load(tmp_path)
  tokens = jax.jit(encoder.encode)(params, images)
  wanted = huggingface.tokens(name, network, images)
  np.testing.assert_allclose(tokens, wanted, atol=3e-5)


@pytest.mark.parametrize('files', [HUGGING_FACE, OFFICIAL])
def test_every_key_counts(files):
  for name, file in files.items():
    state_dict = oracles.weights(file)
    spec = zoo.find(name)
    module = spec.module.clone(grid=(4, 4), **oracles.TINY)
    accept = lambda tensors, s=spec, m=module: unpack.parameters(s, m, tensors)
    accept(state_dict)
    for key in state_dict:
      if dropped(spec, key):
        continue
      rest = {k: v for k, v in state_dict.items() if k != key}
      with pytest.raises(errors.DataError, match=re.escape(key)):
        accept(rest)
      with pytest.raises(errors.DataError, match=f'{re.escape(key)}|rows'):
        accept(rest | {key: state_dict[key][..., :-1]})
    with pytest.raises(errors.DataError, match=r'unknown weights: \S*surprise'):
      accept(state_dict | {next(iter(state_dict)) + '.surprise': np.zeros(3)})


def dropped(spec, key):
  rules = [layouts.LAYOUTS[name] for name in spec.layouts]
  return any(re.search(p, key) for rule in rules for p in rule.drop)


def test_misspelt_keys_of_mocov3(golden):
  def repaired(key):
    for pattern, replacement in layouts.LAYOUTS['mocov3'].repairs:
      key = re.sub(pattern, replacement, key)
    return key

  prefix = layouts.LAYOUTS['mocov3'].prefixes[0]
  drop = layouts.LAYOUTS['mocov3'].drop
  for key, wanted in golden_files.load_json('mocov3_keyfix').items():
    if any(re.search(pattern, key) for pattern in drop):
      assert wanted == []
    else:
      assert [repaired(key).removeprefix(prefix)] == wanted


def test_wrapped_and_prefixed_files():
  tensors = oracles.weights('enc_jepa')
  file = {
      'encoder': {f'module.{k}': v for k, v in tensors.items()},
      'target_encoder': {},
      'epoch': 300,
  }
  encoder = encoders.create('jepa-vit-h', **oracles.TINY)
  same(encoder.from_torch(file), encoder.from_torch(tensors))
  tensors = oracles.weights('enc_mae')
  encoder = encoders.create('mae-vit-l', **oracles.TINY)
  same(encoder.from_torch({'model': tensors}), encoder.from_torch(tensors))
  tensors = oracles.weights('enc_clip')
  pair = {f'visual.{k}': v for k, v in tensors.items()}
  pair |= {'transformer.resblocks.0.ln_1.weight': np.ones(4)}
  encoder = encoders.create('clip-vit-L', **oracles.TINY)
  same(encoder.from_torch(pair), encoder.from_torch(tensors))
  deeper = tensors | {'transformer.resblocks.2.ln_1.weight': np.ones(32)}
  with pytest.raises(errors.DataError, match='resblocks.2.ln_1'):
    encoder.from_torch(deeper)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_chunked_blocks():
  tensors = oracles.weights('enc_dinov2_swiglu_g')
  chunk = lambda k: re.sub(r'^blocks\.(\d)', r'blocks.\1.\1', k)
  encoder = encoders.create('dinov2-vit-g', **oracles.TINY)
  chunked = {chunk(k): v for k, v in tensors.items()}
  assert 'blocks.1.1.norm1.weight' in chunked
  same(encoder.from_torch(chunked), encoder.from_torch(tensors))


def test_masked_bias_of_dinov3():
  tensors = oracles.weights('enc_dinov3_b')
  encoder = encoders.create('dinov3-vit-b16', **oracles.TINY)
  tensors['blocks.0.attn.qkv.bias_mask'] = np.zeros(96, np.float32)
  params = encoder.from_torch(tensors)
  assert not np.any(params['blocks_0']['attn']['qkv']['bias'])
  periods = params['rope_embed']['periods']
  np.testing.assert_array_equal(periods, tensors['rope_embed.periods'])


def test_not_a_number_is_refused():
  tensors = oracles.weights('enc_dinov3_b')
  tensors['blocks.0.attn.qkv.bias_mask'][:3] = np.nan
  encoder = encoders.create('dinov3-vit-b16', **oracles.TINY)
  with pytest.raises(errors.DataError, match='blocks.0.attn.qkv.bias'):
    encoder.from_torch(tensors)


def test_a_larger_model_is_recognised():
  encoder = encoders.create('dinov2-vit-s', width=32, depth=1, heads=2)
  with pytest.raises(errors.DataError, match='has 2 blocks of width 32, want'):
    encoder.from_torch(oracles.weights('enc_dinov2'))


def test_other_normalisation_of_radio_is_refused():
  encoder = encoders.create('cradio-vit-b', **oracles.TINY)
  file = {
      'radio_model.model.patch_generator.embedder.weight': np.zeros((32, 768)),
      'radio_model.input_conditioner.norm_mean': np.full((3, 1, 1), 0.5),
  }
  with pytest.raises(errors.DataError, match='norm_mean'):
    encoder.from_torch(file)


def test_torch_and_safetensors_files(tmp_path):
  tensors = oracles.weights('enc_dino')
  encoder = encoders.create('dino-vit-b', **oracles.TINY)
  params = encoder.from_torch(tensors)
  files.write_torch(tmp_path / 'a.pth', tensors)
  files.write_safetensors(tmp_path / 'a.safetensors', tensors)
  same(encoder.load(tmp_path / 'a.pth'), params)
  same(encoder.load(tmp_path / 'a.safetensors'), params)


def test_half_precision_files_are_widened(tmp_path):
  tensors = oracles.weights('enc_dino')
  half = {k: v.astype(np.float16) for k, v in tensors.items()}
  files.write_safetensors(tmp_path / 'a.safetensors', half)
  encoder = encoders.create('dino-vit-b', **oracles.TINY)
  params = encoder.load(tmp_path / 'a.safetensors')
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
