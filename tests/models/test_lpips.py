"""LPIPS against outputs of the official code, on random weights of VGG-16."""

import golden_files
import jax
import jax.numpy as jnp
import lpips_weights
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.models import lpips
from irepa_jax.weights import convert
from irepa_jax.weights import files

pytestmark = pytest.mark.usefixtures('fast_compile')

GOLDEN = golden_files.load('repae_lpips')
MODULE = lpips.LPIPS(doubled=True)


def nhwc(x):
  return jnp.asarray(np.moveaxis(x, 1, -1))


@jax.jit
def distance_and_gradient(params, a, b):
  def mean(b):
    distances = MODULE.apply({'params': params}, a, b)
    return jnp.mean(distances), distances

  grad, distances = jax.grad(mean, has_aux=True)(b)
  return distances, grad


@pytest.fixture(scope='module')
def state_dict():
  return lpips_weights.entries(GOLDEN, 15200)


def test_random_weights_are_those_of_the_oracle(state_dict):
  sums = GOLDEN['meta']['checksums_sum_first_last']
  for name, (total, first, last) in sums.items():
    made = np.float64(state_dict[f'features.{name}']).ravel()
    np.testing.assert_allclose(made.sum(), total, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([made[0], made[-1]], [first, last], rtol=1e-6)


def test_distance_and_gradient_equal_the_official_ones(state_dict):
  params = convert.from_torch(MODULE, state_dict)
  a, b = nhwc(GOLDEN['input']), nhwc(GOLDEN['target'])
  made, grad = distance_and_gradient(params, a, b)
  np.testing.assert_allclose(made, GOLDEN['lpips'].ravel(), rtol=1e-4)
  expected = nhwc(GOLDEN['grad_target'])
  assert np.abs(grad - expected).max() < 5e-4 * np.abs(expected).max()


def test_activations_equal_the_official_ones(state_dict):
  params = convert.from_torch(MODULE, state_dict)['net']
  net = jax.jit(lpips.Activations(True, jnp.float32).apply)
  made = net({'params': params}, nhwc(GOLDEN['input']))
  assert [x.shape[-1] for x in made] == [64, 128, 256, 512, 512]
  for i, x in enumerate(made):
    stored = nhwc(GOLDEN[f'feat{i}_sub'])
    np.testing.assert_allclose(
        x[:, ::4, ::4, ::16], stored, rtol=1e-4, atol=1e-4 * stored.max()
    )


def test_equal_images_have_distance_zero_and_a_finite_gradient(state_dict):
  params = convert.from_torch(MODULE, state_dict)
  a = jnp.zeros((2, 64, 64, 3))
  made, grad = distance_and_gradient(params, a, a)
  assert made.max() < 1e-9 and np.isfinite(grad).all()


def test_it_has_the_published_number_of_parameters():
  shapes = convert.torch_shapes(lpips.LPIPS())
  count = lambda part: sum(
      int(np.prod(s)) for name, s in shapes.items() if part in name
  )
  assert count('features') == 14_714_688
  assert count('lin') == 64 + 128 + 256 + 512 + 512


def test_it_is_read_from_the_two_published_files(state_dict, tmp_path):
  heads = {k: v for k, v in state_dict.items() if k.startswith('lin')}
  network = {k: v for k, v in state_dict.items() if k not in heads}
  network['classifier.0.bias'] = np.zeros(3, np.float32)
  files.write_safetensors(tmp_path / 'vgg16.safetensors', network)
  files.write_torch(tmp_path / 'vgg.pth', heads)
  params = lpips.load(
      MODULE, str(tmp_path / 'vgg16.safetensors'), str(tmp_path / 'vgg.pth')
  )
  back = convert.to_torch(MODULE, params)
  assert all(np.array_equal(back[k], state_dict[k]) for k in state_dict)


def test_a_missing_file_is_refused_in_one_line(tmp_path):
  with pytest.raises(errors.DataError, match='no such file') as caught:
    lpips.load(MODULE, str(tmp_path / 'vgg16.pth'))
  assert '\n' not in str(caught.value)


def test_files_of_something_else_are_refused_by_name(state_dict, tmp_path):
  path = tmp_path / 'other.safetensors'
  files.write_safetensors(path, {'x': np.zeros(1, np.float32)})
  with pytest.raises(errors.DataError, match='other.safetensors .* not VGG-16'):
    lpips.load(MODULE, str(path), str(path))
