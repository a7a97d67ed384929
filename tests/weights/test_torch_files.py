"""Files of torch.save without PyTorch: what is read, written and refused."""

import argparse
import collections
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.weights import torch_files

torch = pytest.importorskip('torch')
LAYOUTS = pytest.mark.parametrize('zipped', [True, False])
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def save(path, tree, zipped):
  torch.save(tree, path, _use_new_zipfile_serialization=zipped)
  return path


def same(array, tensor):
  tensor = tensor.detach()
  half = tensor.dtype in (torch.float16, torch.bfloat16)
  wanted = (tensor.float() if half else tensor).numpy()
  assert array.dtype == wanted.dtype
  np.testing.assert_array_equal(array, wanted)


@LAYOUTS
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_dtype_is_read(tmp_path, dtype, zipped):
  tensor = torch.arange(-6, 6).reshape(3, 4).to(dtype)
  path = save(tmp_path / 'a.pt', {'x': tensor}, zipped)
  same(torch_files.read(path)['x'], tensor)


@LAYOUTS
def test_views_share_a_storage(tmp_path, zipped):
  base = torch.arange(24.0)
  tensors = {
      'whole': base,
      'part': base[3:9].reshape(2, 3),
      'transposed': base.reshape(4, 6).t(),
      'every_other': base[1::2],
      'expanded': base[:1].expand(5),
      'scalar': base[7],
      'empty': torch.zeros(0, 3),
  }
  path = save(tmp_path / 'a.pt', tensors, zipped)
  found = torch_files.read(path)
  for name, tensor in tensors.items():
    same(found[name], tensor)


@LAYOUTS
def test_a_training_checkpoint_is_read_with_its_arguments(tmp_path, zipped):
  module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
  moments = {'step': torch.tensor(1.0), 'exp_avg': torch.ones(3, 2)}
  tree = {
      'model': module.state_dict(),
      'parameter': module[0].weight,
      'opt': {'state': {0: moments}, 'param_groups': [{'betas': (0.9, 0.99)}]},
      'args': argparse.Namespace(lr=1e-4, betas=(0.9, 0.999), name='run'),
      'steps': 7,
      'best': np.float64(3.5),
      'size': module[0].weight.shape,
      'device': torch.device('cuda', 1),
      'default': collections.defaultdict(dict, a=1),
  }
  found = torch_files.read(save(tmp_path / 'a.pt', tree, zipped))
  assert found['args'] == {'lr': 1e-4, 'betas': (0.9, 0.999), 'name': 'run'}
  assert (found['steps'], found['best'], found['size']) == (7, 3.5, (3, 2))
  assert (found['device'], found['default']) == ('cuda:1', {'a': 1})
  assert list(found['model']) == list(tree['model'])
  same(found['model']['1.running_var'], tree['model']['1.running_var'])
  same(found['parameter'], module[0].weight)
  same(found['opt']['state'][0]['exp_avg'], moments['exp_avg'])
  assert found['opt']['param_groups'] == [{'betas': (0.9, 0.99)}]


def test_arrays_of_zip_files_stay_on_disk(tmp_path):
  path = save(tmp_path / 'a.pt', {'x': torch.ones(1000)}, True)
  base = torch_files.read(path)['x']
  while base.base is not None and not isinstance(base, np.memmap):
    base = base.base
  assert isinstance(base, np.memmap)


def test_compressed_archives_are_read(tmp_path):
  stored = save(tmp_path / 'a.pt', {'x': torch.arange(100)}, True)
  packed = tmp_path / 'b.pt'
  with zipfile.ZipFile(stored) as old, zipfile.ZipFile(
      packed, 'w', zipfile.ZIP_DEFLATED
  ) as new:
    for name in old.namelist():
      new.writestr(name, old.read(name))
  np.testing.assert_array_equal(torch_files.read(packed)['x'], np.arange(100))


def test_torch_reads_what_is_written(tmp_path):
  path = tmp_path / 'a.pt'
  arrays = {
      'matrix': np.arange(6, dtype=np.float32).reshape(2, 3).T,
      'half': np.ones(3, ml_dtypes.bfloat16),
      'count': np.int64([1, 2]),
      'flag': np.array([True, False]),
      'scalar': np.array(3.5, np.float32),
      'empty': np.zeros((0, 2), np.float32),
  }
  torch_files.write(
      path,
      {
          'ema': arrays,
          'steps': np.int32(4),
          'args': {'lr': 1e-4, 'a': [1, 'b']},
      },
  )
  found = torch.load(path, weights_only=True)
  assert (found['steps'], found['args']) == (4, {'lr': 1e-4, 'a': [1, 'b']})
  for name, array in arrays.items():
    tensor = found['ema'][name]
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    np.testing.assert_array_equal(
        wide.numpy(), array.astype(wide.numpy().dtype)
    )
    assert tensor.shape == array.shape
  ours = torch_files.read(path)['ema']
  np.testing.assert_array_equal(ours['matrix'], arrays['matrix'])


def test_arrays_that_torch_cannot_hold_are_refused(tmp_path):
  with pytest.raises(errors.DataError, match='uint16'):
    torch_files.write(tmp_path / 'a.pt', {'x': np.zeros(2, np.uint16)})


class Malicious:
  """Unpickled by anybody careless, it writes a file."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return pathlib.Path.touch, (self.target,)


class Shell:

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    import os

    return os.system, (self.command,)


@LAYOUTS
@pytest.mark.parametrize('kind', ['method', 'shell'])
def test_no_code_of_a_file_runs(tmp_path, zipped, kind):
  proof = tmp_path / 'proof'
  attack = Malicious(proof) if kind == 'method' else Shell(f'touch {proof}')
  path = save(tmp_path / 'a.pt', {'x': torch.ones(2), 'y': attack}, zipped)
  with pytest.raises(errors.DataError, match='wants to load .* refused'):
    torch_files.read(path)
  assert not proof.exists()
  torch.load(path, weights_only=False)  # the attack is a real one
  assert proof.exists()


@pytest.mark.parametrize(
    'name',
    [
        'builtins.eval',
        'builtins.getattr',
        'os.system',
        'torch.load',
        'numpy.load',
        'irepa_jax.weights.torch_files.read',
    ],
)
def test_any_other_name_is_refused(tmp_path, name):
  module, _, function = name.rpartition('.')
  path = tmp_path / 'a.pth'
  # As many pickles as an old file has, the fourth of them with the name.
  plain = [pickle.dumps(v, 2) for v in (torch_files.LEGACY_MAGIC, 1001, {})]
  bad = b'\x80\x02c' + f'{module}\n{function}\n'.encode() + b'.'
  path.write_bytes(b''.join([*plain, bad]))
  with pytest.raises(errors.DataError, match=f'load {name},'):
    torch_files.read(path)


@LAYOUTS
def test_missing_bytes_are_noticed(tmp_path, zipped):
  tensors = {'x': torch.ones(4096)}
  path = save(tmp_path / 'a.pt', tensors, zipped)
  data = path.read_bytes()
  for cut in (0, 1, 10, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:cut])
    with pytest.raises(Exception):  # noqa: B017 - weights.read explains it
      torch_files.read(path)


def test_a_flipped_bit_of_a_zip_file_is_noticed(tmp_path):
  path = save(tmp_path / 'a.pt', {'x': torch.ones(4096)}, True)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match='storage 0 fails its checksum'):
    torch_files.read(path)


def test_tensors_beyond_their_storage_are_refused(tmp_path):
  path = tmp_path / 'a.pt'
  torch_files.write(path, {'x': np.zeros(4, np.float32)})
  with zipfile.ZipFile(path) as archive:
    entries = {name: archive.read(name) for name in archive.namelist()}
  old, new = b'K\x04\x85', b'K\x05\x85'  # the tuple (4,), then (5,)
  assert entries['archive/data.pkl'].count(old) == 1
  entries['archive/data.pkl'] = entries['archive/data.pkl'].replace(old, new)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in entries.items():
      archive.writestr(name, data)
  with pytest.raises(ValueError, match='beyond its storage'):
    torch_files.read(path)
