"""Every family of vision transformers against its official code."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from irepa_jax.encoders import blocks
from irepa_jax.encoders import rotary

OFFICIAL = {
    'dino-vit-b': 'enc_dino',
    'dinov2-vit-b': 'enc_dinov2',
    'dinov2reg-vit-b': 'enc_dinov2reg',
    'dinov2-vit-g': 'enc_dinov2_swiglu_g',
    'dinov3-vit-b16': 'enc_dinov3_b',
    'dinov3-vit-h16plus': 'enc_dinov3_hplus',
    'dinov3-vit-7b16': 'enc_dinov3_7b',
    'mocov3-vit-b': 'enc_mocov3',
    'mae-vit-l': 'enc_mae',
    'jepa-vit-h': 'enc_jepa',
    'clip-vit-L': 'enc_clip',
    'pe-vit-l': 'enc_pe_core_l_cls',
    'pe-vit-g': 'enc_pe_core_g_nocls',
    'langpe-vit-l': 'enc_pe_lang_l_cls_ls',
    'spatialpe-vit-b': 'enc_pe_spatial_b16_cls',
}
# Other outputs of the same weights.
VARIANTS = {
    'dinov2mixed-vit-b': ('enc_dinov2', 'mixed_patchtokens_alpha0.1_img1'),
    'pe-vit-lnorm': ('enc_pe_core_l_cls', 'patchtokens_norm_img1'),
    'pe-vit-gnorm': ('enc_pe_core_g_nocls', 'patchtokens_norm_img1'),
}


@pytest.mark.parametrize('name', OFFICIAL)
def test_tokens_are_the_official_ones(name):
  encoder, params, oracle = oracles.load(name, OFFICIAL[name])
  tokens = jax.jit(encoder.encode)(params, oracles.images())
  assert tokens.shape == (2, 256, 32) and tokens.dtype == jnp.float32
  some = oracle['patchtokens_img0_every4']
  np.testing.assert_allclose(tokens[1], oracle['patchtokens_img1'], atol=2e-5)
  np.testing.assert_allclose(tokens[0, ::4], some, atol=2e-5)
  if 'pos_embed_resampled' in oracle:
    table = oracle['pos_embed_resampled']
    np.testing.assert_allclose(params['pos_embed'], table, atol=2e-6)

  # Half precision points the same way, and a scan changes nothing.
  half, _, _ = oracles.load(
      name, OFFICIAL[name], dtype=jnp.bfloat16, scan_layers=True
  )
  rounded = jax.jit(half.encode)(params, oracles.images())
  norm = lambda z: jnp.linalg.norm(z, axis=-1)
  cosine = (tokens * rounded).sum(-1) / norm(tokens) / norm(rounded)
  assert cosine.min() > 0.999


# Whose official tokens are known at 256 pixels only: timm has the networks.
AT_512 = (
    'pe-vit-l', 'pe-vit-g', 'langpe-vit-l', 'spatialpe-vit-b', 'mocov3-vit-b',
)  # fmt: skip


@pytest.mark.parametrize('name', AT_512)
def test_tokens_of_large_images_are_those_of_timm(golden, name):
  file = OFFICIAL[name]
  encoder, params, _ = oracles.load(name, file, resolution=512)
  tokens = jax.jit(encoder.encode)(params, oracles.large_images()[:1])
  wanted = golden('timm_512')[file]  # every eighth
  np.testing.assert_allclose(tokens[0, ::8], wanted, atol=2e-5)


def test_matrices_are_kept_in_the_compute_dtype():
  name, file = 'pe-vit-l', OFFICIAL['pe-vit-l']
  encoder, params, _ = oracles.load(name, file, dtype=jnp.bfloat16)
  block = params['blocks_1']
  assert block['attn']['qkv']['kernel'].dtype == jnp.bfloat16
  assert block['attn']['qkv']['bias'].dtype == jnp.float32
  assert params['pos_embed'].dtype == jnp.float32
  whole = oracles.load(name, file)[1]
  images = oracles.images()[1:]
  np.testing.assert_array_equal(
      jax.jit(encoder.encode)(params, images),
      jax.jit(encoder.encode)(whole, images),
  )


@pytest.mark.parametrize('name', VARIANTS)
def test_variants_of_the_output(name):
  file, key = VARIANTS[name]
  encoder, params, oracle = oracles.load(name, file)
  tokens = jax.jit(encoder.encode)(params, oracles.images()[1:])
  np.testing.assert_allclose(tokens[0], oracle[key], atol=2e-5)


def test_scan_over_layers_changes_nothing():
  encoder, params, _ = oracles.load('dinov3-vit-b16', 'enc_dinov3_b')
  scanned = oracles.load('dinov3-vit-b16', 'enc_dinov3_b', scan_layers=True)[0]
  x = oracles.images()[:1]
  np.testing.assert_allclose(
      jax.jit(scanned.encode)(params, x),
      jax.jit(encoder.encode)(params, x),
      atol=1e-5,
  )


@pytest.mark.parametrize('file', ['enc_dinov3_b', 'enc_dinov3_7b'])
def test_rotary_angles_of_dinov3(golden, file):
  oracle = golden(file)
  periods = rotary.dinov3_periods(16, 'float32')
  angles = rotary.dinov3_angles(periods, (16, 16))
  np.testing.assert_allclose(jnp.sin(angles), oracle['rope_sin'], atol=2e-6)
  np.testing.assert_allclose(jnp.cos(angles), oracle['rope_cos'], atol=2e-6)


@pytest.mark.parametrize(
    'file, offset', [('enc_pe_core_l_cls', 1), ('enc_pe_core_g_nocls', 0)]
)
def test_rotary_angles_of_pe(golden, file, offset):
  oracle = golden(file)['rope_freq']  # rows ::9, the class token first
  angles = rotary.pe_angles(16, (16, 16), offset)
  angles = np.concatenate([np.zeros((offset, 16)), angles])
  np.testing.assert_allclose(angles[::9], oracle, atol=1e-6)


def test_released_periods_are_rounded():
  periods = rotary.dinov3_periods(64)
  assert periods.dtype == np.float32
  np.testing.assert_array_equal(
      periods,
      [1, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5, 10, 13.3125]
      + [17.75, 23.75, 31.625, 42.25, 56.25, 75],
  )


@pytest.mark.parametrize('bias', [True, False])
def test_a_tpu_multiplies_by_parts_and_finds_the_same_tokens(bias):
  block = blocks.Block(2, 32, qkv_bias=bias)
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  variables = block.init(jax.random.key(1), x)
  ours = block.clone(platform='tpu').apply(variables, x)
  # float32 products of 8 and 32 numbers in another order.
  np.testing.assert_allclose(ours, block.apply(variables, x), atol=5e-6)
