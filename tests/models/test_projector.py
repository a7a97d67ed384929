"""Projectors against PyTorch outputs, counts and initialisation."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.models import projector as projectors
from irepa_jax.weights import convert

KINDS = {'conv3': ('conv', 3), 'mlp': ('mlp', 3), 'linear': ('linear', 3)}
FULL = {'conv_k1': ('conv', 1), 'conv_k3': ('conv', 3)} | KINDS


def tiny(kind, kernel=3, widths=(40,)):
  return projectors.Projectors(
      kind, 48, widths, grid=(4, 4), hidden=64, kernel=kernel
  )


def initial(module):
  inputs = [jnp.zeros(s.shape, s.dtype) for s in module.example_inputs()]
  return jax.jit(module.init)(jax.random.key(0), *inputs)['params']


@pytest.mark.parametrize('case', KINDS)
def test_projection_as_torch(golden, case):
  oracle = golden_files.subset(golden('sit_forward'), f'case/{case}')
  module = tiny(*KINDS[case])
  params = convert.from_torch(module, golden_files.subset(oracle, 'sd'))
  (found,) = module.apply(
      {'params': params}, jnp.asarray(oracle['zs_original'])
  )
  np.testing.assert_allclose(found, oracle['zs/0'], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('width, size', [(384, 'S'), (768, 'B'), (1152, 'XL')])
@pytest.mark.parametrize('case', ['conv_k1', 'conv_k3', 'mlp', 'linear'])
def test_parameter_counts_are_the_official_ones(case, width, size):
  kind, kernel = FULL[case]
  module = projectors.Projectors(kind, width, (768,), kernel=kernel)
  shapes = convert.param_shapes(module)
  counts = golden_files.load_json('arch_fingerprint')['SiT'][f'SiT-{size}/2']
  found = sum(s.size for s in jax.tree.leaves(shapes))
  assert found == counts[case]['projector']


@pytest.mark.parametrize('kernel', [1, 3, 5, 7])
def test_convolution_starts_as_in_torch(kernel):
  layer = initial(tiny('conv', kernel))['projectors_0']['projection_layer']
  bound = 1 / np.sqrt(48 * kernel**2)
  for array in layer.values():
    assert 0.9 * bound < abs(array).max() <= bound
  # A uniform draw, within 5 standard errors.
  error = 5 / np.sqrt(2 * layer['kernel'].size)
  assert abs(layer['kernel'].std() * np.sqrt(3) / bound - 1) < error


def test_linear_layers_start_as_xavier():
  params = initial(tiny('mlp'))['projectors_0']
  for i, fans in ((0, 48 + 64), (2, 64 + 64), (4, 64 + 40)):
    layer = params[f'projection_layer_{i}']
    bound = np.sqrt(6 / fans)
    assert 0.98 * bound < abs(layer['kernel']).max() <= bound
    assert not layer['bias'].any()


def test_one_projection_for_each_encoder():
  module = tiny('conv', widths=(24, 40))
  params = initial(module)
  assert list(params) == ['projectors_0', 'projectors_1']
  tokens = jnp.ones((2, 16, 48))
  shapes = jax.eval_shape(module.apply, {'params': params}, tokens)
  assert [s.shape for s in shapes] == [(2, 16, 24), (2, 16, 40)]
