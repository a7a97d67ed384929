"""Resizing against PyTorch and timm outputs, and its identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import resize

TORCH = {'bilinear': 'bilinear', 'bicubic': 'cubic075'}


def resized(x, size, kernel):
  return np.asarray(resize.resize(jnp.asarray(x), size, kernel))


@pytest.mark.parametrize('side', [16, 32, 64])
@pytest.mark.parametrize('kernel', ['cubic075', 'cubic05aa', 'bilinear'])
def test_one_channel_as_torch(golden, kernel, side):
  oracle = golden('encoders_classic')
  x = oracle['resize_in_37'][None, :, :, None]
  y = resized(x, (side, side), kernel)[0, :, :, 0]
  wanted = oracle[f'resize_{kernel}_37_{side}']
  np.testing.assert_allclose(y, wanted, atol=3e-6)


@pytest.mark.parametrize('sides', ['24_16', '32_16', '16_32'])
@pytest.mark.parametrize('mode', TORCH)
def test_maps_as_torch(golden, mode, sides):
  oracle = golden('pos_embed_resample')
  x = oracle[f'{mode}/{sides}/in'].transpose(0, 2, 3, 1)
  side = int(sides.split('_')[1])
  y = resized(x, (side, side), TORCH[mode])
  wanted = oracle[f'{mode}/{sides}/out'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(y, wanted, atol=3e-6)


@pytest.mark.parametrize('case', ['14_16', '37_16', '16_16', '16_32', '24_16'])
def test_position_tables_as_timm(golden, case):
  oracle = golden('pos_embed_resample')
  n, m = map(int, case.split('_'))
  table = oracle[f'timm/{case}_prefix1/in'][:, 1:]
  y = resized(table.reshape(1, n, n, -1), (m, m), 'cubic05aa')
  wanted = oracle[f'timm/{case}_prefix1/out'][:, 1:]
  np.testing.assert_allclose(y.reshape(wanted.shape), wanted, atol=3e-6)


@pytest.mark.parametrize('sizes', [(256, 224), (37, 16), (16, 32), (7, 128)])
@pytest.mark.parametrize('kernel', resize.KERNELS)
def test_matrices_as_torch(kernel, sizes):
  torch = pytest.importorskip('torch')
  n, m = sizes
  mode = 'bilinear' if kernel.startswith('bilinear') else 'bicubic'
  # The antialias of torch needs two axes: resize the first of an (n, n) map.
  offset = resize.KERNELS[kernel].offset
  size = dict(scale_factor=((m + offset) / n, 1.0)) if offset else {}
  wanted = torch.nn.functional.interpolate(
      torch.eye(n, dtype=torch.float64)[None, None],
      **(size or dict(size=(m, n))),
      mode=mode,
      antialias=kernel.endswith('aa'),
  )[0, 0]
  np.testing.assert_allclose(
      resize.matrix(n, m, kernel), wanted.numpy(), atol=1e-13
  )


@pytest.mark.parametrize('kernel', resize.KERNELS)
def test_weights_sum_to_one(kernel):
  for sizes in ((5, 3), (3, 5), (16, 1), (1, 4)):
    sums = resize.matrix(*sizes, kernel).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-14)


@pytest.mark.parametrize('kernel', resize.KERNELS)
def test_equal_sizes_change_nothing(kernel):
  x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
  np.testing.assert_array_equal(resized(x, (5, 7), kernel), x)
  np.testing.assert_array_equal(resize.matrix(5, 5, kernel), np.eye(5))


def test_height_and_width_are_separate():
  x = jax.random.normal(jax.random.key(0), (1, 6, 4, 2))
  y = resized(x, (3, 8), 'bilinear')
  assert y.shape == (1, 3, 8, 2)
  tall = resized(x, (3, 4), 'bilinear')
  np.testing.assert_allclose(y, resized(tall, (3, 8), 'bilinear'), atol=1e-6)


def test_dtype_is_kept():
  x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
  assert resize.resize(x, (2, 2), 'bilinear').dtype == jnp.bfloat16
