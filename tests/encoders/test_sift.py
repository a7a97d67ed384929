"""Dense SIFT against kornia and OpenCV."""

import jax
import numpy as np
import oracles
import pytest

from irepa_jax import encoders
from irepa_jax.encoders import sift
from irepa_jax.encoders import sift_opencv


def encode(name, images):
  encoder = encoders.create(name, resolution=images.shape[1])
  assert encoder.load() == {}
  return np.asarray(jax.jit(encoder.encode)({}, images))


@pytest.fixture
def photos(golden):
  return golden('photos_uint8')['photos'].transpose(0, 2, 3, 1)


def test_descriptor_of_a_patch(golden):
  oracle = golden('sift_kornia')
  found = sift.descriptor(oracle['descriptor/patches'].swapaxes(0, 1))[0]
  np.testing.assert_allclose(found, oracle['descriptor/out'], atol=1e-6)


@pytest.mark.parametrize('resolution', [256, 512])
def test_tokens_are_those_of_kornia(golden, photos, resolution):
  if resolution == 256:
    images, every, wanted = photos, 2, golden('sift_kornia')['tokens_every2']
  else:
    images, every = oracles.large_images()[:1], 8
    wanted = golden('sift_512')['kornia'][None]
  tokens = encode('sift-vit-dense', images)[:, ::every]
  # The direction is a maximum over 36 bins: rounding may choose a neighbour.
  error = np.abs(tokens - wanted).max(-1)
  assert (error < 1e-3).mean() > 0.98
  assert error.max() < 0.01


def test_directions_are_those_of_kornia(golden):
  oracle = golden('encoders_classic')
  x = oracle['image_u8'][None].astype(np.float32)
  still = np.zeros((1, 64), np.float32)
  gray = x @ np.float32(sift.LUMINANCE) / 255
  angle = sift.orientation(sift.patches(gray, (8, 8), still, sift.ORIENTATION))
  wanted = np.deg2rad(oracle['sift_kornia_angle_deg'])
  np.testing.assert_allclose(np.cos(angle[0] - wanted), 1, atol=1e-6)
  tokens = encode('sift-vit-dense', oracle['image_u8'][None])
  np.testing.assert_allclose(tokens[0], oracle['sift_kornia'], atol=1e-5)


@pytest.mark.parametrize('case', ['tokens', 'tokens_up', 'small', '512'])
def test_tokens_are_those_of_opencv(golden, photos, case):
  images, wanted = photos, golden('sift_opencv').get(case)
  if case == 'tokens_up':
    images = photos[:, 64:192, 64:192].repeat(2, axis=1).repeat(2, axis=2)
  if case == 'small':
    oracle = golden('encoders_classic')
    images, wanted = oracle['image_u8'][None], oracle['siftopencv'][None]
  if case == '512':
    images = oracles.large_images()[:1]
    wanted = golden('sift_512')['opencv'][None]
  tokens = encode('siftopencv-vit-dense', images)
  tokens = tokens[:, :: {'tokens_up': 3, '512': 8}.get(case, 1)]
  error = np.abs(tokens - wanted.astype(np.float32))
  assert error.max() <= 1  # whole numbers in 0..255
  assert (error > 0).mean() < 2e-3


def test_gray_is_that_of_opencv(golden, photos):
  gray = sift_opencv.gray(photos.astype(np.float32))
  np.testing.assert_array_equal(gray, golden('sift_opencv')['gray_u8'])
