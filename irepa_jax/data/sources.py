"""Where images come from: positioned sources, each a length and an index.

  folder:/path              a tree with one folder of images per class
  tfds:imagenet2012[:train] a TensorFlow Datasets set in array_record files,
                            by name or by the folder of its prepared files
  arrow:/path[:train]       a Hugging Face `datasets` folder (save_to_disk)
                            of both: ,image=NAME,label=NAME choose columns
  latents:/path[:val]       the precomputed latents of the official release
  digits                    1,797 handwritten digits of 16x16 pixels

source[i] is an Example. The same files give the same order on every machine,
and `fingerprint` tells whether they are the same. Nothing imports TensorFlow.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from irepa_jax import errors
from irepa_jax.data import digits
from irepa_jax.data import images
from irepa_jax.data import tables
from irepa_jax.data import tree
from irepa_jax.names import file_names

KINDS = ('folder', 'tfds', 'arrow', 'latents', 'digits')
# Folders of the official release; the latents are those of sd-vae-ft-mse.
RELEASE_IMAGES = 'imagenet-latents-images'
RELEASE_LATENTS = 'imagenet-latents-sdvae-ft-mse-f8d4'

Example, Table = tables.Example, tables.Table


def create(spec):
  """Opens a source by its name on the command line; raises DataError."""
  kind, _, rest = spec.partition(':')
  if kind not in KINDS or bool(rest) == (kind == 'digits'):
    raise errors.UsageError(
        f'unknown source {spec!r}; one of folder:PATH, tfds:NAME[:SPLIT],'
        ' arrow:PATH[:SPLIT], latents:PATH[:SPLIT], digits'
    )
  return OPEN[kind](rest)


@dataclasses.dataclass(frozen=True)
class Folder:
  """A tree of images; classes are its folders in alphabetical order."""

  root: pathlib.Path
  class_names: tuple
  files: tuple  # (path below root, label), ordered by class and name
  left_out: str = ''  # what else lies there, for the user
  has_images, has_moments = True, False

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    path, label = self.files[i]
    return Example((self.root / path).read_bytes(), label)

  def name(self, i):
    return str(self.root / self.files[i][0])

  @property
  def fingerprint(self):
    return _digest(path for path, _ in self.files)


@dataclasses.dataclass(frozen=True)
class Release:
  """The official release: moments [8 32 32], with images or labels alone."""

  latents: Any
  images: Any  # a Table, or None
  labels: Any  # read from a text file where there are no images
  origin: str
  fingerprint: str
  has_moments = True

  def __len__(self):
    return len(self.latents)

  def __getitem__(self, i):
    moments = _channels_last(self.latents[i]['data'])
    self._check_shape(moments)
    if self.images is None:
      return Example(None, int(self.labels[i]), moments)
    return self.images[i]._replace(moments=moments)

  def _check_shape(self, moments):
    """Raises DataError for latents of another shape than the first."""
    if moments.shape != self.shape:
      raise errors.DataError(
          f'latents of shape {moments.shape}, those of the first row'
          f' {self.shape}'
      )

  @functools.cached_property
  def shape(self):
    """(h, w, 2c) of the first row."""
    return _channels_last(self.latents[0]['data']).shape

  def name(self, i):
    return f'{self.origin} row {i}'

  @property
  def has_images(self):
    return self.images is not None

  @property
  def left_out(self):
    return self.images.left_out if self.has_images else ''

  @property
  def class_names(self):
    return self.images.class_names if self.has_images else ()


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Images that fit into memory."""

  origin: str
  images: np.ndarray  # uint8 [n h w 3]
  labels: np.ndarray
  class_names: tuple
  has_images, has_moments = True, False
  left_out = ''

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    return Example(self.images[i], int(self.labels[i]))

  def name(self, i):
    return f'{self.origin} image {i}'

  @property
  def fingerprint(self):
    return hashlib.sha256(self.images.tobytes()).hexdigest()[:16]


def open_folder(path):
  """Lists a tree of images in the order of torchvision's ImageFolder."""
  root = pathlib.Path(path)
  _require_folder(root, 'image folder')
  classes, left_out = tree.images_by_class(root)
  left_out = tree.told(left_out)
  note = f' (ignored: {left_out})' if left_out else ''
  files = [
      (name, label)
      for label, names in enumerate(classes.values())
      for name in names
  ]
  if not files:
    raise errors.DataError(
        f'no images under {root}: expected one folder per class with'
        f' {" ".join(images.EXTENSIONS)} files, found {_some(root)}{note}'
    )
  if empty := [name for name, names in classes.items() if not names]:
    raise errors.DataError(
        f'{len(empty)} of {len(classes)} class folders under {root} hold no'
        f' images: {", ".join(empty[:3])}{note}'
    )
  return Folder(root, tuple(classes), tuple(files), left_out)


def open_tfds(rest):
  """Opens a tfds set that was prepared as array_record."""
  tfds = _import('tensorflow_datasets', 'tensorflow-datasets')
  rest, chosen = tables.choices(rest)
  name, split = _split(rest, 'train')
  try:
    if pathlib.Path(name).is_dir():
      builder = tfds.builder_from_directory(file_names.plain(name))
    else:
      builder = tfds.builder(name)
    features = dict(builder.info.features)
    encoded = {
        k: tfds.decode.SkipDecoding()
        for k, v in features.items()
        if isinstance(v, tfds.features.Image)
    }
    rows = builder.as_data_source(split=split, decoders=encoded)
  except Exception as error:  # of tfds: many types, AssertionError too
    raise errors.DataError(
        f'cannot open tfds:{name} split {split!r}: {tables.first_line(error)}'
        " (prepare it first, with file_format='array_record'; TFDS_DATA_DIR"
        ' names its folder)'
    ) from error
  origin = f'tfds:{builder.info.full_name}:{split}'
  columns = tables.columns(features, origin, chosen)
  if columns.image not in encoded:
    raise errors.DataError(
        f'{origin}: column {columns.image!r} holds no image files, but'
        f' {features[columns.image]!r}'
    )
  label = features[columns.label]
  if label.shape or not np.issubdtype(label.np_dtype, np.integer):
    raise errors.DataError(
        f'{origin}: column {columns.label!r} is no class, but {label!r}'
    )
  names = tuple(getattr(label, 'names', ()))
  return Table(origin, rows, columns, names, _marked(origin, chosen))


def open_arrow(rest):
  """Opens a folder written by `datasets.Dataset.save_to_disk`."""
  rest, chosen = tables.choices(rest)
  path, split = _split(rest, None)
  rows, fingerprint = _load_arrow(path, split)
  columns = tables.columns(rows.features, path, chosen)
  rows = rows.select_columns(list(dict.fromkeys(columns[:2])))
  rows = _with_files(rows, columns.image, path)
  names, classes = _classes(rows, columns.label, path)
  fingerprint = _marked(fingerprint, chosen)
  return Table(f'arrow:{path}', rows, columns, names, fingerprint, classes)


def open_latents(rest):
  """Opens the release: latents beside images, or beside a list of labels."""
  path, split = _split(rest, 'train')
  root = pathlib.Path(path)
  _require_folder(root, 'folder of precomputed latents')
  if not (root / RELEASE_LATENTS).is_dir():
    raise errors.DataError(
        f'no {RELEASE_LATENTS} under {root}, found {_some(root)}'
    )
  part = 'val' if split == 'val' else ''
  latents, fingerprint = _load_arrow(root / RELEASE_LATENTS / part, None)
  if 'data' not in latents.features:
    raise errors.DataError(
        f'{root / RELEASE_LATENTS} has no column data: {list(latents.features)}'
    )
  latents = latents.with_format('numpy')
  pictures, labels = None, None
  if (root / RELEASE_IMAGES).is_dir():
    pictures = open_arrow(str(root / RELEASE_IMAGES / part))
  else:
    labels = _read_labels(root / f'imagenet_{split}_labels.txt')
  others = labels if pictures is None else pictures
  if len(others) != len(latents):
    raise errors.DataError(
        f'{len(latents)} latents but {len(others)} images or labels in {root}'
    )
  return Release(latents, pictures, labels, f'latents:{path}', fingerprint)


def open_digits(_):
  """Loads the digits, which scikit-learn ships."""
  sklearn = _import('sklearn.datasets', 'scikit-learn')
  originals = sklearn.load_digits()
  names = tuple(str(name) for name in originals.target_names)
  pixels = digits.to_images(originals.images)
  return Arrays('digits', pixels, originals.target, names)


OPEN = {
    'folder': open_folder,
    'tfds': open_tfds,
    'arrow': open_arrow,
    'latents': open_latents,
    'digits': open_digits,
}


def _split(rest, default):
  """Splits PATH[:SPLIT]; a folder whose own name has a colon stays whole."""
  path, colon, split = rest.rpartition(':')
  if not colon or pathlib.Path(rest).exists():
    return rest, default
  return path, split


def _load_arrow(path, split):
  """Returns the rows of a folder and the fingerprint with which it was saved."""
  datasets = _import('datasets', 'datasets')
  path = pathlib.Path(path)
  _require_folder(path, 'folder of arrow files')
  try:
    rows = datasets.load_from_disk(str(file_names.plain(path)))
  except Exception as e:  # of datasets and pyarrow: many types
    raise errors.DataError(
        f'cannot read {path} with datasets.load_from_disk:'
        f' {tables.first_line(e)}'
    ) from e
  if isinstance(rows, datasets.DatasetDict):
    split = split or 'train'
    if split not in rows:
      raise errors.DataError(f'{path} has no split {split!r}, but {list(rows)}')
    rows, path = rows[split], path / split
  if not len(rows):
    raise errors.DataError(f'{path} holds no rows')
  state = json.loads((path / 'state.json').read_text())
  return rows, state['_fingerprint']


def _with_files(rows, column, path):
  """Returns rows whose images stay files; DataError where there are none."""
  datasets = _import('datasets', 'datasets')
  kind = rows.features[column]
  if isinstance(kind, datasets.Image):
    return rows.cast_column(column, datasets.Image(decode=False))
  if getattr(kind, 'dtype', '') in ('binary', 'large_binary'):
    return rows
  raise errors.DataError(
      f'{path}: column {column!r} holds no image files, but {kind!r}: save it'
      f' with .cast_column({column!r}, datasets.Image())'
  )


def _classes(rows, column, path):
  """Returns (class names, {word: label} or None) of a column of labels.

  Words are classes in alphabetical order.
  """
  kind = rows.features[column]
  dtype = getattr(kind, 'dtype', '')
  if dtype in ('string', 'large_string'):
    names = sorted(word for word in rows.unique(column) if word is not None)
    return tuple(names), {word: label for label, word in enumerate(names)}
  if not re.match(r'u?int|bool|float', str(dtype)):
    raise errors.DataError(
        f'{path}: column {column!r} is no class, but {kind!r}: one whole number'
        ' or word a row'
    )
  return tuple(getattr(kind, 'names', None) or ()), None


def _marked(fingerprint, chosen):
  """Tells apart what other columns make of the same rows."""
  return ','.join([fingerprint, *(f'{k}={chosen[k]}' for k in sorted(chosen))])


def _channels_last(data):
  """Moments [8 32 32] or [1 8 32 32] as float16 [32 32 8]."""
  try:
    found = np.asarray(data, np.float32)
    channels, height, width = found.shape[-3:]
    chw = found.reshape(channels, height, width)
  except (TypeError, ValueError) as error:  # null or ragged
    raise errors.DataError(
        'the row has no latents [channels height width]'
    ) from error
  return chw.transpose(1, 2, 0).astype(np.float16)


def _read_labels(path):
  if not path.is_file():
    raise errors.DataError(f'neither {RELEASE_IMAGES} nor {path} was found')
  try:
    return np.array(path.read_text().split(), np.int64)
  except ValueError as error:
    raise errors.DataError(
        f'{path} should hold one whole number a line: {error}'
    ) from error


def _require_folder(path, what):
  if not path.is_dir():
    raise errors.DataError(f'{what} {path} not found (in {pathlib.Path.cwd()})')


def _some(root):
  names = sorted(entry.name for entry in os.scandir(root))[:3]
  return ', '.join(names) if names else 'nothing'


def _digest(names):
  digest = hashlib.sha256()
  for name in names:
    digest.update(name.encode(errors='surrogateescape') + b'\n')
  return digest.hexdigest()[:16]


def _import(module, package):
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise errors.UsageError(
        f'this source needs the package {module.split(".")[0]}: pip install'
        f' {package}'
    ) from error
