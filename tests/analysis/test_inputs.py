"""Images of an analysis: folders, data sets, sources, masks, batches."""

import numpy as np
import PIL.Image
import pytest

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import masks


def write_images(folder, count, size=(20, 24)):
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    pixels = np.full((*size, 3), 10 * i, np.uint8)
    PIL.Image.fromarray(pixels).save(folder / f'{i}.png')
  return folder


def test_folder_is_read_at_any_depth(tmp_path):
  write_images(tmp_path / 'a' / 'b', 2)
  write_images(tmp_path, 1)
  pictures = inputs.open_pictures(str(tmp_path), 8)
  assert [pictures.name(i) for i in range(3)] == ['0.png', 'a/b/0.png', 'a/b/1.png']
  pixels, label, mask, moments = pictures.read(2)
  assert pixels.shape == (8, 8, 3) and (pixels == 10).all()
  assert (label, mask, moments) == (-1, None, None)


def test_limit_is_spread_over_the_data(tmp_path):
  write_images(tmp_path, 9)
  pictures = inputs.open_pictures(str(tmp_path), 8, limit=3)
  assert [pictures.name(i) for i in range(3)] == ['0.png', '4.png', '8.png']


def test_photographs_and_digits_need_no_files():
  photos = inputs.open_pictures(inputs.PHOTOS, 32)
  assert len(photos) == 2 and photos.read(0)[0].shape == (32, 32, 3)
  assert photos.describe().endswith('32 x 32 pixels: china.jpg to flower.jpg')
  digits = inputs.open_pictures('digits', 16, limit=5)
  assert digits.read(0)[1] == 0


def test_prepared_data_set_brings_labels_and_moments(tmp_path):
  from irepa_jax.jobs import prepare

  prepare.prepare(
      'digits', tmp_path, image_size=16, autoencoder='haar', image_format='png',
      max_images=12, say=lambda line: None,
  )  # fmt: skip
  pictures = inputs.open_pictures(str(tmp_path), 16)
  (batch,) = inputs.batches(pictures, 12)
  assert batch.moments.shape == (12, 8, 8, 8)
  np.testing.assert_array_equal(batch.label[:10], np.arange(10))
  with pytest.raises(errors.DataError, match='16 pixels wide'):
    inputs.open_pictures(str(tmp_path), 32)


def test_batches_have_one_shape_and_every_image_once(tmp_path):
  pictures = inputs.open_pictures(str(write_images(tmp_path, 7)), 8)
  parts = list(inputs.batches(pictures, 3))
  assert [p.image.shape for p in parts] == [(3, 8, 8, 3)] * 3
  assert [p.count for p in parts] == [3, 3, 1]
  seen = np.concatenate([p.index[: p.count] for p in parts])
  np.testing.assert_array_equal(seen, np.arange(7))
  values = np.concatenate([p.image[: p.count, 0, 0, 0] for p in parts])
  np.testing.assert_array_equal(values, 10 * np.arange(7))


def test_masks_travel_with_their_images(tmp_path):
  write_images(tmp_path / 'images', 2)
  write_images(tmp_path / 'masks', 2)  # 0.png is all background
  pictures = inputs.open_pictures(str(tmp_path / 'images'), 8)
  for kind in (str(tmp_path / 'masks'), 'auto'):
    read = inputs.mask_reader(kind, 8)
    (batch,) = inputs.batches(pictures, 2, read)
    assert batch.mask.shape == (2, 8, 8) and batch.mask.dtype == bool
  assert inputs.mask_reader('none', 8) is None
  (batch,) = inputs.batches(pictures, 2, inputs.mask_reader(str(tmp_path / 'masks'), 8))
  np.testing.assert_array_equal(batch.mask.any(axis=(1, 2)), [False, True])
  guessed = masks.guess(pictures.read(0)[0])
  assert guessed.shape == (8, 8)


def test_bad_data_is_refused(tmp_path):
  with pytest.raises(errors.DataError, match='nowhere not found'):
    inputs.open_pictures('nowhere', 8)
  with pytest.raises(errors.UsageError, match='unknown source'):
    inputs.open_pictures('zip:x', 8)
  with pytest.raises(errors.DataError, match='no images under'):
    inputs.open_pictures(str(tmp_path), 8)
  write_images(tmp_path, 1)
  with pytest.raises(errors.DataError, match='gives 1 image'):
    inputs.open_pictures(str(tmp_path), 8)
  (tmp_path / '1.png').write_bytes(b'not an image')
  pictures = inputs.open_pictures(str(tmp_path), 8)
  with pytest.raises(errors.DataError, match=r'1\.png: unreadable image'):
    list(inputs.batches(pictures, 2))
