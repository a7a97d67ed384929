"""Weight files by path: formats, laziness, and one line for each fault."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from irepa_jax import errors
from irepa_jax.weights import files
from irepa_jax.weights import hub

ARRAYS = {
    'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
    'a.bias': np.float32([1, 2]),
    'count': np.int64([3]),
}


def same(found, wanted=ARRAYS):
  assert set(found) == set(wanted)
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    'name', ['a.safetensors', 'a.pt', 'a.pth', 'a.pth.tar']
)
def test_round_trip_is_bit_exact(tmp_path, name):
  path = tmp_path / name
  write = files.write_safetensors if '.safe' in name else files.write_torch
  write(path, ARRAYS)
  same(files.read(path))
  assert list(tmp_path.iterdir()) == [path]


def test_torch_reads_our_safetensors(tmp_path):
  torch_safetensors = pytest.importorskip('safetensors.torch')
  files.write_safetensors(tmp_path / 'a.safetensors', ARRAYS)
  found = torch_safetensors.load_file(tmp_path / 'a.safetensors')
  same({k: v.numpy() for k, v in found.items()})


def test_half_precision_is_widened(tmp_path):
  path = tmp_path / 'a.safetensors'
  arrays = {
      'half': np.float16([0.1, 2]),
      'brain': np.asarray([0.1, 2], ml_dtypes.bfloat16),
  }
  safetensors_numpy.save_file(arrays, path)
  same(files.read(path), {k: v.astype(np.float32) for k, v in arrays.items()})


def sharded(folder):
  """Writes the arrays in two files and their index."""
  names = {
      'one.safetensors': ['a.weight'],
      'two.safetensors': ['a.bias', 'count'],
  }
  for file, keys in names.items():
    files.write_safetensors(folder / file, {k: ARRAYS[k] for k in keys})
  places = {key: file for file, keys in names.items() for key in keys}
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps({'weight_map': places}))
  return path


def test_shards_are_read_as_one_file(tmp_path):
  same(files.read(sharded(tmp_path)))


def test_missing_arrays_and_shards_are_named(tmp_path):
  path = sharded(tmp_path)
  (tmp_path / 'one.safetensors').unlink()
  with pytest.raises(errors.DataError, match='one.safetensors not found'):
    files.read(path)
  files.write_safetensors(tmp_path / 'one.safetensors', {})
  with pytest.raises(errors.DataError, match='its shards lack a.weight'):
    files.read(path)


def test_a_failed_write_leaves_nothing(tmp_path):
  path = tmp_path / 'a.pt'
  files.write_torch(path, ARRAYS)
  with pytest.raises(errors.DataError):
    files.write_torch(path, ARRAYS | {'bad': np.zeros(2, np.uint16)})
  same(files.read(path))
  assert list(tmp_path.iterdir()) == [path]


FAULTS = {
    'lfs': (
        b'version https://git-lfs.github.com/spec/v1\n',
        'a git-lfs pointer',
    ),
    'html': (b'\n<!DOCTYPE html><html>', 'a web page'),
    'empty': (b'', '0 bytes, truncated or damaged'),
    'noise': (bytes(range(256)), '256 bytes, truncated or damaged'),
}


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('fault', FAULTS)
def test_what_a_bad_file_is_stands_in_one_line(tmp_path, fault, suffix):
  data, text = FAULTS[fault]
  path = tmp_path / f'a{suffix}'
  path.write_bytes(data)
  with pytest.raises(errors.DataError) as caught:
    files.read(path)
  assert str(path) in str(caught.value) and text in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_truncated_files_are_named_with_their_size(tmp_path, suffix):
  path = tmp_path / f'a{suffix}'
  write = files.write_torch if suffix == '.pth' else files.write_safetensors
  write(path, ARRAYS)
  path.write_bytes(path.read_bytes()[:-8])
  size = path.stat().st_size
  with pytest.raises(
      errors.DataError, match=f'{path} .{size} bytes, truncated'
  ):
    files.read(path)


def test_a_flipped_bit_in_the_cache_of_the_hub_is_noticed(tmp_path):
  plain = tmp_path / 'model.safetensors'
  files.write_safetensors(plain, ARRAYS)
  blob = tmp_path / 'blobs' / files.sha256(plain)
  link = tmp_path / 'snapshots' / 'f00d' / plain.name
  for path in (blob, link):
    path.parent.mkdir(parents=True)
  plain.rename(blob)
  link.symlink_to(blob)
  same(files.read(link))
  content = bytearray(blob.read_bytes())
  content[content.find(ARRAYS['a.weight'].tobytes())] ^= 1
  blob.write_bytes(content)
  with pytest.raises(errors.DataError, match='damaged: its SHA-256 .*again'):
    files.read(link)


def test_a_file_that_contradicts_its_name_is_refused(tmp_path):
  path = tmp_path / 'pt_inception-2015-12-05-6726825d.pth'
  files.write_torch(path, ARRAYS)
  with pytest.raises(errors.DataError, match='damaged.* published was 6726825d'):
    files.read(path)


def test_a_number_in_a_name_is_no_digest(tmp_path):
  path = tmp_path / 'sit-00400000.pth'
  files.write_torch(path, ARRAYS)
  assert files.read(path).keys() == ARRAYS.keys()


@pytest.mark.parametrize('name', ['a.npz', 'a.h5', 'a'])
def test_other_formats_are_refused(tmp_path, name):
  (tmp_path / name).write_bytes(b'x')
  with pytest.raises(errors.DataError, match=r'\.safetensors, \.pt, \.pth'):
    files.read(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(errors.DataError, match='a.pt not found'):
    files.read(tmp_path / 'a.pt')


def test_hash_of_a_file(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'abc')
  assert files.sha256(path) == hashlib.sha256(b'abc').hexdigest()


def test_local_files_and_folders_are_found(tmp_path):
  path = tmp_path / 'a.pt'
  files.write_torch(path, ARRAYS)
  assert files.fetch(path) == path
  assert files.fetch(str(tmp_path)) == path
  other = tmp_path / 'model.safetensors'
  files.write_safetensors(other, ARRAYS)
  assert files.fetch(tmp_path, ('none.pt', 'model.safetensors')) == other
  with pytest.raises(errors.DataError, match='a.pt, model.safetensors; give'):
    files.fetch(tmp_path)


def test_folders_of_shards_are_found_by_their_index(tmp_path):
  path = sharded(tmp_path)
  assert files.fetch(tmp_path) == path


@pytest.mark.parametrize('source', ['no/such.pth', '/no/such', 'name', 'a/b/c'])
def test_what_is_neither_file_nor_id_is_refused(source):
  with pytest.raises(errors.DataError, match='no such file, and no hub id'):
    files.fetch(source)


@pytest.mark.parametrize(
    'source, filename, names',
    [
        ('org/name', None, hub.NAMES),
        ('org/name', 'x.pt', ('x.pt',)),
        ('org/name', ('x.pt', 'y.pt'), ('x.pt', 'y.pt')),
        ('org/name:sub/z.pt', 'x.pt', ('sub/z.pt',)),
    ],
)
def test_hub_ids_name_a_repository_and_a_file(
    monkeypatch, source, filename, names
):
  monkeypatch.setattr(hub, 'fetch', lambda *args: args)
  assert files.fetch(source, filename) == ('org/name', names)
