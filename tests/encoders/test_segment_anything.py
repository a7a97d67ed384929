"""SAM, SAM 2 and its masks, whole, from images to tokens."""

import jax
import numpy as np
import oracles
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.encoders import unpack
from irepa_jax.encoders import zoo
from irepa_jax.weights import files

torch = pytest.importorskip('torch')
segment_anything = pytest.importorskip('segment_anything')

POINTS = 2
MASKS = f'sam2logit-vit-s{POINTS}'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Returns the two networks and the folders in which they are saved."""
  out = {}
  for build in (segment_anything.sam, segment_anything.sam2):
    folder = tmp_path_factory.mktemp('saved')
    network = build()
    network.save_pretrained(folder)
    out[build.__name__] = network, str(folder)
  return out


def images(resolution):
  if resolution == 256:
    return oracles.images()[1:]
  return oracles.large_images()[:1]


def agree(encoder, folder, x, wanted):
  tokens = jax.jit(encoder.encode)(encoder.load(folder), x)
  assert tokens.shape == wanted.shape
  np.testing.assert_allclose(tokens, wanted, atol=2e-5)


@pytest.mark.parametrize('resolution', [256, 512])
def test_tokens_of_sam(saved, resolution):
  network, folder = saved['sam']
  encoder = encoders.create(
      'sam-vit-b', resolution=resolution, **segment_anything.SAM
  )
  x = images(resolution)
  agree(encoder, folder, x, segment_anything.tokens_of_sam(network, x))


@pytest.mark.parametrize('resolution', [256, 512])
def test_tokens_of_sam2(saved, resolution):
  network, folder = saved['sam2']
  encoder = encoders.create(
      'sam2-vit-s', resolution=resolution, **segment_anything.TRUNK
  )
  x = images(resolution)
  agree(encoder, folder, x, segment_anything.tokens_of_sam2(network, x))


@pytest.mark.parametrize(
    'resolution, released', [(256, True), (512, True), (512, False)]
)
def test_tokens_of_masks_of_sam2(saved, resolution, released):
  network, folder = saved['sam2']
  encoder = encoders.create(
      MASKS,
      resolution=resolution,
      trunk=zoo.find(MASKS).module.trunk.clone(**segment_anything.TRUNK),
      official_point_scaling=released,
  )
  x = images(resolution)
  wanted = segment_anything.tokens_of_masks(network, x, POINTS, released)
  agree(encoder, folder, x, wanted)


def test_a_key_left_over_is_named(saved):
  file = files.read(saved['sam2'][1] + '/model.safetensors')
  keys = {key: file[key] for key in file}
  keys['mask_decoder.surprise'] = np.zeros(3)
  spec = zoo.find(MASKS)
  module = spec.module.clone(
      trunk=spec.module.trunk.clone(**segment_anything.TRUNK)
  )
  with pytest.raises(errors.DataError, match='mask_decoder.surprise'):
    unpack.parameters(spec, module, keys)
