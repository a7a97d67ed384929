"""Spaces of encoders against transformers, torch and PIL (stored)."""

import golden_files
import jax
import numpy as np
import PIL.Image
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import resize
from irepa_jax.evals import encoder_spaces
from irepa_jax.weights import files

TINY = dict(depth=2, width=32, heads=2)
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def oracle():
  return golden_files.load('encoder_spaces')


def images():
  return golden_files.load('images_uint8')['enc_images'].transpose(0, 2, 3, 1)


def state_dict(name):
  return golden_files.subset(golden_files.load(name), 'sd')


def save(path, tensors):
  files.write_safetensors(path, tensors)
  return str(path)


@pytest.fixture(scope='module')
def dinov2_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'dinov2.safetensors'
  return save(path, state_dict('enc_dinov2'))


def wide_clip():
  """The stored CLIP with a position table of 24 x 24, as at 336 pixels."""
  tensors = state_dict('enc_clip')
  table = tensors['positional_embedding']
  rows = np.arange(24) % 16
  grid = table[1:].reshape(16, 16, -1)[rows][:, rows].reshape(24**2, -1)
  return tensors | {'positional_embedding': np.concatenate([table[:1], grid])}


@pytest.fixture(scope='module')
def clip_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'clip.safetensors'
  return save(path, wide_clip())


def close(found, expected):
  found, expected = np.asarray(found), np.asarray(expected)
  assert found.shape == expected.shape and found.dtype == np.float32
  error = np.abs(found - expected).max() / np.abs(expected).max()
  print(f'largest error {error:.1e} of the largest value')
  assert error < TOLERANCE


def test_dinov2_equals_transformers(oracle, dinov2_file):
  space = encoder_spaces.dinov2(dinov2_file, **TINY)
  close(space.extract(images())['pool'], oracle['dinov2'])
  assert space.name == 'dinov2' and space.resolution is None
  assert space.sha256 == files.sha256(dinov2_file)


def test_dinov2_resizes_its_table_as_its_own_code(oracle):
  table = state_dict('enc_dinov2')['pos_embed'][:, 1:].reshape(37, 37, 32)
  matrix = resize.matrix(37, 16, 'cubic075_offset')
  found = np.einsum('hr,wc,rcd->hwd', matrix, matrix, table).reshape(1, 256, 32)
  np.testing.assert_allclose(found, oracle['dinov2_table'], atol=2e-6)
  plain = resize.matrix(37, 16, 'cubic075')
  other = np.einsum('hr,wc,rcd->hwd', plain, plain, table)
  assert np.abs(other.reshape(found.shape) - found).max() > 0.01


def test_clip_equals_transformers(oracle, clip_file):
  space = encoder_spaces.clip(clip_file, **TINY)
  close(space.extract(images())['embedding'], oracle['clip'])
  assert space.name == 'clip'


def test_projections_of_all_layouts_are_read(tmp_path):
  matrix = state_dict('enc_clip')['proj']
  for i, tensors in enumerate(
      ({'proj': matrix}, {'visual.proj': matrix},
       {'visual_projection.weight': np.ascontiguousarray(matrix.T)})
  ):  # fmt: skip
    path = save(tmp_path / f'{i}.safetensors', tensors)
    np.testing.assert_array_equal(encoder_spaces.projection(path), matrix)


def test_a_clip_without_projection_is_refused(tmp_path):
  tensors = wide_clip()
  del tensors['proj']
  path = save(tmp_path / 'x.safetensors', tensors)
  with pytest.raises(errors.DataError, match='no projection of CLIP'):
    encoder_spaces.clip(path, **TINY)


@pytest.mark.parametrize('side', [224, 336])
def test_images_are_resized_as_pil_resizes_them(side):
  found = np.asarray(encoder_spaces.pil_bicubic(images(), side))
  expected = np.stack([
      np.asarray(
          PIL.Image.fromarray(image).resize((side, side), PIL.Image.BICUBIC)
      )
      for image in images()
  ])
  np.testing.assert_array_equal(found, expected)


def test_any_encoder_gives_its_mean_token():
  space = encoder_spaces.encoder('hog-vit-g16_d128', resolution=256)
  network = encoders.create('hog-vit-g16_d128', resolution=256)
  expected = np.asarray(network.encode({}, images())).mean(1)
  np.testing.assert_allclose(
      space.extract(images())['pool'], expected, atol=1e-6
  )
  assert space == ('hog-vit-g16_d128', '', 256, space.extract)


def test_images_may_be_split_over_devices(dinov2_file):
  from irepa_jax.distributed import sharding

  mesh = sharding.make_mesh()
  rows = np.concatenate([images()] * 4)
  space = encoder_spaces.dinov2(dinov2_file, mesh=mesh, **TINY)
  split = jax.device_put(rows, sharding.batch_sharding(mesh))
  whole = encoder_spaces.dinov2(dinov2_file, **TINY)
  np.testing.assert_allclose(
      space.extract(split)['pool'], whole.extract(rows)['pool'], atol=1e-5
  )
