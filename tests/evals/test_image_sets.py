"""Sets of images: streamed in batches, equal to what a whole load gives."""

import io
import zipfile

import data_sets
import numpy as np
import PIL.Image
import pytest
import small_space

from irepa_jax import errors
from irepa_jax.evals import image_sets

COUNT = 11


def read(images, size=4, rows=None):
  rows = range(size) if rows is None else rows
  return list(images.batches(size, rows))


def whole(images):
  return np.concatenate(read(images))[: images.count]


@pytest.fixture(scope='module')
def pixels():
  return small_space.images(COUNT)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_an_npz_in_batches_is_what_numpy_loads(tmp_path, pixels, save):
  save(tmp_path / 'a.npz', pixels, np.arange(COUNT))
  images = image_sets.open_(tmp_path / 'a.npz')
  assert (images.count, images.side) == (COUNT, (8, 8))
  np.testing.assert_array_equal(whole(images), pixels)
  last = read(images)[-1]
  assert len(last) == 4 and not last[3:].any()
  assert images.sha256() == image_sets.file_sha256(tmp_path / 'a.npz')


def test_a_process_gets_its_own_rows(tmp_path, pixels):
  np.savez(tmp_path / 'a.npz', pixels)
  write_folder(tmp_path / 'f', pixels)
  for path in ('a.npz', 'f'):
    images = image_sets.open_(tmp_path / path)
    mine = np.concatenate(read(images, rows=[1, 3]))
    np.testing.assert_array_equal(mine[:5], pixels[[1, 3, 5, 7, 9]])


def test_an_npz_is_never_read_whole(tmp_path, monkeypatch):
  np.savez(tmp_path / 'a.npz', small_space.images(200))
  asked = []
  real = zipfile.ZipExtFile.read
  spy = lambda self, n=-1: asked.append(n) or real(self, n)
  monkeypatch.setattr(zipfile.ZipExtFile, 'read', spy)
  read(image_sets.open_(tmp_path / 'a.npz'), size=2)
  assert max(asked) == 2 * 8 * 8 * 3


def write_folder(folder, pixels, suffix='png'):
  for i, image in enumerate(pixels):
    path = folder / f'{i // 4}' / f'{i:03d}.{suffix}'
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(path)
  (folder / 'notes.txt').write_text('not an image')


def test_a_folder_is_read_below_and_in_order(tmp_path, pixels):
  write_folder(tmp_path, pixels)
  images = image_sets.open_(tmp_path)
  assert images.count == COUNT
  np.testing.assert_array_equal(whole(images), pixels)
  before = images.sha256()
  (tmp_path / '0' / '000.png').unlink()
  assert image_sets.open_(tmp_path).sha256() != before


def test_jpeg_and_grey_files_are_rgb(tmp_path):
  grey = PIL.Image.fromarray(np.full((8, 8), 90, np.uint8))
  grey.save(tmp_path / 'a.JPG', 'jpeg')
  assert (whole(image_sets.open_(tmp_path)) == 90).all()


def test_a_data_set_gives_the_images_of_its_records(tmp_path):
  data_sets.write(tmp_path / 'd', count=9)
  images = image_sets.open_(tmp_path / 'd')
  wanted = np.stack([data_sets.pixels(i) for i in range(9)])
  np.testing.assert_array_equal(whole(images), wanted)


NPZ = [
    (dict(arr_0=np.zeros((2, 8, 8, 3), 'f')), r'float32.*0\.\.1 become'),
    (dict(arr_0=np.zeros((2, 3, 8, 8), 'u1')), 'transpose'),
    (dict(arr_0=np.zeros((2, 8, 8, 3), 'i8')), r'int64 \[2, 8, 8, 3\]'),
    (dict(arr_0=np.zeros((8, 8, 3), 'u1')), r'uint8 \[8, 8, 3\]'),
    (dict(arr_0=np.zeros((0, 8, 8, 3), 'u1')), r'uint8 \[0, 8, 8, 3\]'),
    (dict(arr_0=np.asfortranarray(np.zeros((2, 8, 8, 3), 'u1'))), 'Fortran'),
    (dict(arr_0=np.array([None, 'x'])), 'object'),
    (dict(images=np.zeros((2, 8, 8, 3), 'u1')), 'no images.*holds images'),
]


@pytest.mark.parametrize('arrays, said', NPZ, ids=lambda x: str(x)[:20])
def test_an_npz_of_something_else_is_told(tmp_path, arrays, said):
  np.savez(tmp_path / 'a.npz', **arrays)
  refused(tmp_path / 'a.npz', said)


def refused(path, said):
  with pytest.raises(errors.DataError, match=said) as raised:
    whole(image_sets.open_(path))
  assert '\n' not in str(raised.value)


def test_missing_empty_and_strange_paths_are_told(tmp_path):
  refused(tmp_path / 'none.npz', 'not found')
  refused(tmp_path / 'none', 'nothing there')
  (tmp_path / 'a.npy').write_bytes(b'x')
  refused(tmp_path / 'a.npy', 'another kind of file')
  (tmp_path / 'empty').mkdir()
  refused(tmp_path / 'empty', 'no images in .*holds nothing')
  (tmp_path / 'b.npz').write_bytes(b'no zip')
  refused(tmp_path / 'b.npz', 'no npz file or is damaged')


def test_a_broken_image_is_named(tmp_path, pixels):
  write_folder(tmp_path, pixels)
  (tmp_path / '1' / '005.png').write_bytes(b'<html>')
  refused(tmp_path, '005.png: unreadable.*web page')


def test_images_of_several_sizes_are_told(tmp_path, pixels):
  write_folder(tmp_path, pixels)
  PIL.Image.new('RGB', (9, 8)).save(tmp_path / 'z.png')
  refused(tmp_path, 'z.png is 8x9 pixels, the first image 8x8')


@pytest.mark.parametrize('compressed', [False, True])
def test_a_flipped_bit_is_found(tmp_path, pixels, compressed):
  save = np.savez_compressed if compressed else np.savez
  buffer = io.BytesIO()
  save(buffer, pixels)
  data = bytearray(buffer.getvalue())
  data[len(data) // 2] ^= 1
  (tmp_path / 'a.npz').write_bytes(data)
  refused(tmp_path / 'a.npz', 'damaged')


def test_a_truncated_npz_is_told(tmp_path, pixels):
  np.savez(tmp_path / 'a.npz', pixels)
  data = (tmp_path / 'a.npz').read_bytes()
  (tmp_path / 'a.npz').write_bytes(data[:1000])
  refused(tmp_path / 'a.npz', 'damaged')


def test_an_array_shorter_than_its_header_is_told(tmp_path, pixels):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      header, dict(descr='|u1', fortran_order=False, shape=(99, 8, 8, 3))
  )
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('arr_0.npy', header.getvalue() + pixels.tobytes())
  refused(tmp_path / 'a.npz', 'not as long as its shape says')


def test_a_data_set_without_images_is_told(tmp_path):
  data_sets.write(tmp_path / 'd', count=9, image_format='none')
  refused(tmp_path / 'd', 'keeps no images')
