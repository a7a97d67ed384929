"""Grids and folders of PNG files."""

import numpy as np
import PIL.Image

from irepa_jax.evals import generate
from irepa_jax.evals import pictures


def images(count, h=4, w=6):
  rng = np.random.default_rng(0)
  return rng.integers(0, 255, (count, h, w, 3), dtype=np.uint8)


def test_grid_has_gaps_and_keeps_the_order():
  x = images(5)
  sheet = pictures.grid(x, columns=3, gap=2)
  assert sheet.shape == (2 + 2 * 6, 2 + 3 * 8, 3)
  np.testing.assert_array_equal(sheet[2:6, 10:16], x[1])
  np.testing.assert_array_equal(sheet[8:12, 2:8], x[3])
  assert (sheet[:2] == 255).all() and (sheet[8:, 18:] == 255).all()


def test_grid_is_square_by_default():
  assert pictures.grid(images(9), gap=0).shape == (12, 18, 3)


def test_folder_holds_one_file_per_number(tmp_path):
  x = images(3)
  job = [
      generate.Part(np.array([0, 1]), np.zeros(2), x[:2]),
      generate.Part(np.array([12]), np.zeros(1), x[2:]),
  ]
  pictures.write_folder(tmp_path / 'png', job)
  assert sorted(p.name for p in (tmp_path / 'png').iterdir()) == [
      '000000.png', '000001.png', '000012.png',
  ]
  with PIL.Image.open(tmp_path / 'png/000012.png') as picture:
    np.testing.assert_array_equal(np.asarray(picture), x[2])


def test_pairs_stand_one_above_the_other():
  images = np.arange(3, dtype=np.uint8)[:, None, None, None, None]
  images = np.tile(10 * images, (1, 2, 2, 2, 3))
  images[:, 1] += 1
  sheet = pictures.pairs(images, height=10, gap=1)  # room for one pair
  assert sheet.shape == (7, 10, 3)
  assert [int(sheet[1, 1 + 3 * i, 0]) for i in range(3)] == [0, 10, 20]
  assert [int(sheet[4, 1 + 3 * i, 0]) for i in range(3)] == [1, 11, 21]


def test_sheets_of_other_heights_stand_beside_each_other():
  left, right = np.zeros((4, 3, 3), np.uint8), np.ones((6, 2, 3), np.uint8)
  sheet = pictures.beside(left, right, gap=1)
  assert sheet.shape == (6, 6, 3)
  assert (sheet[:4, :3] == 0).all() and (sheet[:, 4:] == 1).all()
  assert (sheet[4:, :3] == 255).all() and (sheet[:, 3] == 255).all()
