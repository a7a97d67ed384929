"""Files of torch.save, read and written without PyTorch.

A file is a zip archive of one pickle and one raw file per storage, or, before
PyTorch 1.6, several pickles in a row followed by the storages. Unpickling is
restricted: only tensors, plain containers and the arguments of a training
script can be made; any other name is refused, so no code of the file runs.
"""

import collections
import functools
import io
import pathlib
import pickle
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np

from irepa_jax import errors

STORAGES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
NAMES = {np.dtype(v): k for k, v in STORAGES.items()}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 2
ROOT = 'archive'


def read(path):
  """Returns the object of a file: dicts, lists, numbers and arrays.

  Half-precision arrays become float32; float32 arrays of a zip file stay on
  disk until they are used. Raises DataError for a name that a weight file has
  no business with, ValueError or what the parsers raise for damaged files.
  """
  path = pathlib.Path(path)
  reader = _read_zip if zipfile.is_zipfile(path) else _read_legacy
  return _plain(reader(path))


def write(path, tree):
  """Writes nested dicts, lists, numbers and arrays as torch.save would."""
  data = io.BytesIO()
  pickler = _Pickler(data, PROTOCOL)
  pickler.dump(_storable(tree))
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr(f'{ROOT}/data.pkl', data.getvalue())
    archive.writestr(f'{ROOT}/byteorder', 'little')
    for key, array in enumerate(pickler.arrays):
      with archive.open(f'{ROOT}/data/{key}', 'w', force_zip64=True) as file:
        file.write(array.reshape(-1).view(np.uint8).data)
    archive.writestr(f'{ROOT}/version', '3\n')


class _Unpickler(pickle.Unpickler):
  """Makes what weight files hold, and nothing else.

  storage: (key, dtype, elements) -> flat array.
  """

  def __init__(self, file, storage):
    super().__init__(file, encoding='utf-8')
    self._storage = storage
    self._allowed = _allowed()

  def find_class(self, module, name):
    if module in ('torch', 'torch.storage') and name in STORAGES:
      return name
    if (module, name) in self._allowed:
      return self._allowed[module, name]
    raise errors.DataError(
        f'the file wants to load {module}.{name}, which is neither a tensor nor'
        ' a plain value: refused. Save its state_dict alone with torch.save'
    )

  def persistent_load(self, saved):
    _, kind, key, _, count, *view = saved
    if any(view):
      raise ValueError('views of storages, as before PyTorch 0.4')
    return self._storage(key, np.dtype(STORAGES[kind]), int(count))


def _allowed():
  """Returns the names that may be called, by module and name.

  They are made anew for each file, because a pickle can set attributes on what
  it is given.
  """

  class Namespace(dict):

    def __setstate__(self, state):
      self.update(state)

  tensor = lambda *parts: _tensor(*parts)
  scalar = lambda *parts: _scalar(*parts)
  return {
      ('torch._utils', '_rebuild_tensor_v2'): tensor,
      ('torch._utils', '_rebuild_tensor'): tensor,
      ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
      ('torch', 'Size'): tuple,
      ('torch', 'device'): lambda *names: ':'.join(map(str, names)),
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('collections', 'defaultdict'): lambda *_: {},
      ('__builtin__', 'dict'): dict,
      ('__builtin__', 'list'): list,
      ('__builtin__', 'set'): set,
      ('argparse', 'Namespace'): Namespace,
      ('numpy', 'dtype'): lambda name, *_: np.dtype(name, copy=True),
      ('numpy.core.multiarray', 'scalar'): scalar,
      ('numpy._core.multiarray', 'scalar'): scalar,
      ('_codecs', 'encode'): lambda text, encoding: text.encode(encoding),
  }


def _tensor(storage, offset, size, stride, *_):
  """Returns the view of a flat storage that a tensor is."""
  if 0 in size:
    return np.zeros(size, storage.dtype)
  reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if min((offset, *stride)) < 0 or offset + reach >= len(storage):
    raise ValueError('a tensor reaches beyond its storage')
  strides = [s * storage.itemsize for s in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def _scalar(dtype, data):
  return np.frombuffer(data, dtype)[0].item()


def _read_zip(path):
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    (name,) = [
        n for n in names if n.count('/') == 1 and n.endswith('/data.pkl')
    ]
    root = name.removesuffix('data.pkl')
    storage = functools.partial(_entry, path, archive, f'{root}data/')
    return _Unpickler(archive.open(name), storage).load()


def _entry(path, archive, folder, key, dtype, count):
  """Returns a storage, left on disk once its checksum has been seen to hold."""
  info = archive.getinfo(folder + key)
  if info.file_size < count * dtype.itemsize:
    raise ValueError(f'storage {key} is shorter than the tensors in it')
  if info.compress_type != zipfile.ZIP_STORED or not info.file_size:
    return np.frombuffer(archive.read(info), dtype, count)
  data = np.memmap(path, np.uint8, 'r', _start(path, info), info.file_size)
  if zlib.crc32(data) != info.CRC:
    raise ValueError(f'storage {key} fails its checksum')
  return data[: count * dtype.itemsize].view(dtype)


def _start(path, info):
  """Returns where the bytes of an uncompressed entry begin."""
  with open(path, 'rb') as file:
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack('<HH', file.read(4))
  return info.header_offset + 30 + name + extra


def _read_legacy(path):
  storages = {}

  def storage(key, dtype, count):
    return storages.setdefault(key, np.zeros(count, dtype))

  with open(path, 'rb') as file:
    read_pickle = lambda: _Unpickler(file, storage).load()
    if read_pickle() != LEGACY_MAGIC:
      raise ValueError('no file of torch.save')
    read_pickle(), read_pickle()  # protocol version and machine
    tree = read_pickle()
    for key in read_pickle():
      (count,) = struct.unpack('<q', file.read(8))
      array = storages[key]
      data = file.read(array.nbytes)
      if count != len(array) or len(data) != array.nbytes:
        raise ValueError(f'storage {key} is shorter than the tensors in it')
      array[:] = np.frombuffer(data, array.dtype)
  return tree


def _plain(value):
  """Returns containers as dicts, lists and tuples, half precision widened."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(map(_plain, value))
  if isinstance(value, np.ndarray):
    half = value.dtype in (np.float16, ml_dtypes.bfloat16)
    return value.astype(np.float32) if half else value
  return value


def _storable(value):
  """Returns a tree in types that torch.load(weights_only=True) accepts."""
  if isinstance(value, dict):
    return {k: _storable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(map(_storable, value))
  if isinstance(value, np.generic):
    return value.item()
  if hasattr(value, '__array__'):
    return np.asarray(value, order='C')
  return value


class _Pickler(pickle._Pickler):
  """Writes arrays as the calls by which torch rebuilds tensors."""

  dispatch = dict(pickle._Pickler.dispatch)

  def __init__(self, file, protocol):
    super().__init__(file, protocol)
    self.arrays = []

  def save_array(self, array):
    if array.dtype not in NAMES:
      raise errors.DataError(f'arrays of {array.dtype} have no torch storage')
    self.arrays.append(array)
    strides = tuple(s // array.itemsize for s in array.strides)
    self._name('torch._utils', '_rebuild_tensor_v2')
    self.write(pickle.MARK)
    self._storage(array)
    for value in (0, array.shape, strides, False, collections.OrderedDict()):
      self.save(value)
    self.write(pickle.TUPLE + pickle.REDUCE)

  def _storage(self, array):
    self.write(pickle.MARK)
    self.save('storage')
    self._name('torch', NAMES[array.dtype])
    for value in (str(len(self.arrays) - 1), 'cpu', array.size):
      self.save(value)
    self.write(pickle.TUPLE + pickle.BINPERSID)

  def _name(self, module, name):
    self.write(pickle.GLOBAL + f'{module}\n{name}\n'.encode())

  dispatch[np.ndarray] = save_array
