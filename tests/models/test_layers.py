"""Embeddings against PyTorch outputs; products against convolutions."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.models import layers
from irepa_jax.weights import convert


@pytest.mark.parametrize('case', ['48_4', '64_8', '768_16', '1152_16'])
def test_position_table_as_torch(golden, case):
  wanted = golden('posembed_timestep')[f'sincos2d/{case}']
  width, side = map(int, case.split('_'))
  table = layers.sincos_2d(width, side)
  step = 7 if width > 128 else 1  # of large tables every 7th row is stored
  np.testing.assert_allclose(table[::step], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('case', ['256', '64', '33_odd'])
def test_sinusoids_of_time_as_torch(golden, case):
  oracle = golden('posembed_timestep')
  count = int(case.split('_')[0])
  found = layers.sinusoids(jnp.asarray(oracle['t']), count)
  np.testing.assert_allclose(found, oracle[f't_freq/{case}'], atol=2e-6)


def test_time_embedding_as_torch(golden):
  oracle = golden('posembed_timestep')
  module = TimeOnly(width=48)
  weights = {
      name.removeprefix('t_embedder.'): array
      for name, array in golden_files.subset(oracle, 'sd').items()
  }
  params = convert.from_torch(module, weights)
  found = jax.jit(module.apply)({'params': params}, oracle['t'])
  np.testing.assert_allclose(found, oracle['t_emb/48'], rtol=1e-6, atol=1e-6)


class TimeOnly(layers.TimestepEmbedder):

  def example_inputs(self):
    return (jax.ShapeDtypeStruct((1,), jnp.float32),)


def convolution(x, params, stride, padding):
  out = jax.lax.conv_general_dilated(
      x,
      params['kernel'],
      (stride, stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return out + params['bias']


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
def test_convolution_as_one_product(kernel):
  module = layers.Conv(4, kernel)
  x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
  params = jax.jit(module.init)(jax.random.key(1), x)['params']
  wanted = jax.jit(lambda: convolution(x, params, 1, 'SAME'))()
  found = jax.jit(module.apply)({'params': params}, x)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_convolution_keeps_its_input_and_not_its_patches():
  module = layers.Conv(4, 5)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  params = module.init(jax.random.key(1), x)
  pull = jax.eval_shape(
      lambda *args: jax.vjp(module.apply, *args)[1], params, x
  )
  kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
  weights = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert kept <= x.size + weights


@pytest.mark.parametrize('patch', [1, 2, 4])
def test_patches_are_a_strided_convolution(patch):
  module = layers.PatchEmbed(patch, 6)
  x = jax.random.normal(jax.random.key(0), (2, 8, 4, 3))
  params = jax.jit(module.init)(jax.random.key(1), x)['params']
  wanted = jax.jit(lambda: convolution(x, params['proj'], patch, 'VALID'))()
  found = jax.jit(module.apply)({'params': params}, x)
  np.testing.assert_allclose(found, wanted.reshape(2, -1, 6), atol=1e-5)
