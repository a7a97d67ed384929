"""Dense HOG against scikit-image."""

import jax
import numpy as np
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import resize

CONFIGS = ['g16_d128', 'g16_d128_ppc4', 'g8_d64_ppc8_cb2']


def encode(config, images):
  encoder = encoders.create(f'hog-vit-{config}', resolution=images.shape[1])
  params = encoder.init(jax.random.key(0))
  assert params == encoder.load() == {}
  tokens = np.asarray(jax.jit(encoder.encode)(params, images))
  assert tokens.shape[1:] == (encoder.grid[0] * encoder.grid[1], encoder.width)
  return tokens


@pytest.mark.parametrize('config', CONFIGS)
def test_tokens_are_those_of_the_released_code(golden, config):
  photos = golden('photos_uint8')['photos'].transpose(0, 2, 3, 1)
  wanted = golden('hog')[f'hog/{config}']
  tokens = encode(config, photos)
  every = tokens.shape[1] // wanted.shape[1]
  np.testing.assert_allclose(tokens[:, ::every], wanted, atol=1e-6)


def test_tokens_of_a_small_image(golden):
  oracle = golden('encoders_classic')
  tokens = encode('g8_d128_ppc2_cb4', oracle['image_u8'][None])
  wanted = oracle['hog_g8_d128_ppc2_cb4']
  np.testing.assert_allclose(tokens[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    'config, side',
    [('g4_d128', 16), ('g5_d48_ppc3_cb2', 40), ('g32_d128', 512)],
)
def test_tokens_as_scikit_image(config, side):
  feature = pytest.importorskip('skimage.feature')
  shape = (1 if side == 512 else 3, side, side, 3)
  images = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
  module = encoders.create(f'hog-vit-{config}', resolution=side).module
  tokens = encode(config, images)
  for image, found in zip(images, tokens, strict=True):
    weights = np.float32([0.2126, 0.7152, 0.0722])
    gray = image.astype(np.float32) @ weights / 255
    dense = feature.hog(
        gray,
        orientations=module.width // module.block**2,
        pixels_per_cell=(module.cell,) * 2,
        cells_per_block=(module.block,) * 2,
        feature_vector=False,
    )
    dense = dense.reshape(*dense.shape[:2], -1)
    dense = dense / np.linalg.norm(dense, axis=-1, keepdims=True)
    rows = resize.matrix(dense.shape[0], module.grid[0], 'bilinear')
    wanted = np.einsum('hr,wc,rcd->hwd', rows, rows, dense)
    np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=1e-5)


def test_parts_of_the_config_come_in_any_order():
  create = encoders.create
  a = create('hog-vit-cb2_d64_g8', resolution=64).module
  assert a == create('hog-vit-g8_d64_ppc2_cb2', resolution=64).module


@pytest.mark.parametrize(
    'config, side, word',
    [
        ('g16_d100', 256, 'multiple of 16'),
        ('g16_w128', 256, 'w128'),
        ('g4_d128', 7, '7 pixels'),
    ],
)
def test_settings_that_cannot_work(config, side, word):
  with pytest.raises(errors.UsageError, match=word):
    encoders.create(f'hog-vit-{config}', resolution=side)
