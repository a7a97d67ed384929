"""Which files below a folder are images, the same for every command."""

import collections
import os
import pathlib

import numpy as np
import PIL.Image
import pytest

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import masks
from irepa_jax.data import images
from irepa_jax.data import sources
from irepa_jax.data import tree
from irepa_jax.evals import image_sets
from irepa_jax.jobs import prepare

NAMES = ('cat/0.png', 'cat/1.png', 'dog/0.png')


@pytest.fixture
def root(tmp_path):
  for i, name in enumerate(NAMES):
    write(tmp_path / 'in' / name, 40 * i)
  return tmp_path / 'in'


def write(path, value=0, kind='PNG'):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, kind)


def junk(root, name):
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  (root / name).write_bytes(b'\0\5\x16\7 no image')


def assert_three_images(root):
  """All commands see the three images, and tell that there is more."""
  source = sources.create(f'folder:{root}')
  assert source.class_names == ('cat', 'dog')
  assert source.files == tuple(zip(NAMES, (0, 0, 1), strict=True))
  assert image_sets.open_(root).count == 3
  pictures = inputs.open_pictures(str(root), 8)
  assert [pictures.name(i) for i in range(3)] == list(NAMES)
  found = tree.images_below(root)
  assert found.names == NAMES
  return source.left_out


@pytest.mark.parametrize(
    'name',
    [
        '.ipynb_checkpoints/0-checkpoint.png',
        'cat/.ipynb_checkpoints/0.png',
        'cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg',
        '__MACOSX/cat/._0.png',
        'cat/._0.png',
        'dog/Thumbs.db',
        'dog/.DS_Store',
        'cat/desktop.ini',
        '$RECYCLE.BIN/S-1/x.jpg',
        '#recycle/x.png',
        '.git/objects/x.png',
        '.thumbnails/large/x.png',
        'lost+found/x.png',
    ],
)
def test_things_of_a_system_are_no_images_and_no_classes(root, name):
  junk(root, name)
  assert assert_three_images(root) == f'1 {tree.HIDDEN}'


@pytest.mark.parametrize(
    'name, reason',
    [
        ('cat/notes.txt', '1 .txt files'),
        ('cat/x.HEIC', '1 .heic files'),
        ('cat/x.png~', '1 .png~ files'),
        ('dog/without', '1 without an ending'),
        ('dog/x.psd', '1 .psd files'),
        ('list.csv', '1 .csv files'),
    ],
)
def test_other_files_are_counted_by_their_ending(root, name, reason):
  junk(root, name)
  assert assert_three_images(root) == reason


def test_links_in_a_circle_are_followed_once(root):
  (root / 'cat/all').symlink_to(root)
  (root / 'dog/self').symlink_to('.')
  (root / 'dog/cats').symlink_to(root / 'cat')  # no circle, until its link is
  source = sources.create(f'folder:{root}')
  assert len(source) == 5 and source.left_out == f'3 {tree.CIRCLE}'
  assert inputs.open_pictures(str(root), 8).origin.left_out.endswith(tree.CIRCLE)


def test_links_to_themselves_and_broken_ones(root):
  (root / 'dog/loop').symlink_to('loop')
  assert assert_three_images(root) == '1 without an ending'
  (root / 'dog/1.png').symlink_to('nowhere.png')
  source = sources.create(f'folder:{root}')
  assert len(source) == 4
  with pytest.raises(OSError, match='nowhere|1.png'):
    source[3]


def test_linked_folders_and_files_are_used(root, tmp_path):
  write(tmp_path / 'elsewhere/9.png', 9)
  (root / 'eel').symlink_to(tmp_path / 'elsewhere')
  (root / 'dog/link.png').symlink_to(tmp_path / 'elsewhere/9.png')
  source = sources.create(f'folder:{root}')
  assert source.class_names == ('cat', 'dog', 'eel') and len(source) == 5


def test_folders_and_pipes_called_as_images(root):
  (root / 'cat/x.png').mkdir()
  os.mkfifo(root / 'cat/y.png')
  assert assert_three_images(root) == f'1 {tree.NO_FILE}'
  write(root / 'cat/x.png/in.jpg')
  assert sources.create(f'folder:{root}').files[2] == ('cat/x.png/in.jpg', 0)


@pytest.mark.parametrize(
    'name, kind',
    [
        ('a.gif', 'GIF'), ('b.jfif', 'JPEG'), ('c.JPE', 'JPEG'), ('d.webp', 'WEBP'),
        ('e.jp2', 'JPEG2000'), ('f.TIFF', 'TIFF'), ('g.pnm', 'PPM'), ('h.tga', 'TGA'),
    ],
)  # fmt: skip
def test_every_ending_that_can_be_opened_is_used(root, name, kind):
  write(root / 'cat' / name, 77, kind)
  found = tree.images_below(root)
  assert f'cat/{name}' in found.names and not found.left_out
  seen = images.decode((root / 'cat' / name).read_bytes())
  assert np.abs(seen.astype(int) - 77).max() < 3


def test_images_beside_the_classes_are_told(root):
  write(root / 'flat.png')
  source = sources.create(f'folder:{root}')
  assert len(source) == 3 and source.left_out == f'1 {tree.BESIDE}'
  assert image_sets.open_(root).count == 4


def test_a_class_without_images_says_what_it_holds(root):
  junk(root, 'fox/0.heic')
  with pytest.raises(errors.DataError, match=r'hold no images: fox .*1 \.heic files'):
    sources.create(f'folder:{root}')


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
  scandir = os.scandir

  def closed(path):
    if str(path).endswith('dog'):
      raise PermissionError(13, 'Permission denied')
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', closed)
  for open_ in (lambda: sources.create(f'folder:{root}'), lambda: image_sets.open_(root)):
    with pytest.raises(errors.DataError, match='dog cannot be listed: Permission'):
      open_()


def test_masks_are_looked_up_among_images_alone(root):
  junk(root, 'cat/0.txt')
  junk(root, 'cat/@eaDir/0.png/0.png')
  pixels = masks.Folder(root)('cat/0.jpg', (8, 8), 8)
  assert pixels.shape == (8, 8)
  (root / 'only').mkdir()
  junk(root / 'only', 'a.txt')
  with pytest.raises(errors.DataError, match=r'holds no images but 1 \.txt'):
    masks.Folder(root / 'only')


def test_commands_say_what_was_left_out(root, tmp_path, capsys):
  junk(root, 'cat/notes.txt')
  junk(root, '.cache/x')
  said = []
  prepare.prepare(
      f'folder:{root}', tmp_path / 'out', image_size=8, autoencoder='haar',
      batch_size=1, say=said.append,
  )  # fmt: skip
  assert '3 records of 2 classes' in said[-1]
  for line in (said[0], said[-1]):
    assert line.endswith('1 .txt files, 1 hidden or of a system')
  image_sets.open_(root)
  assert '3 images; ignored: 1 .txt files, 1 hidden' in capsys.readouterr().out
  described = inputs.open_pictures(str(root), 8).describe()
  assert described.endswith('ignored: 1 .txt files, 1 hidden or of a system')


def test_many_reasons_are_counted_together():
  reasons = collections.Counter({f'.{c} files': 9 - i for i, c in enumerate('abcdefgh')})
  assert tree.told(reasons).endswith('4 .f files, 5 others')
  assert tree.told(collections.Counter()) == ''


def test_order_is_that_of_names_files_first(tmp_path):
  for name in ('b/z/1.png', 'b/a.png', 'b/y.png', 'a/2.png', 'b/c/3.png'):
    write(tmp_path / name)
  found = tree.images_below(pathlib.Path(tmp_path)).names
  assert found == ('a/2.png', 'b/a.png', 'b/y.png', 'b/c/3.png', 'b/z/1.png')
