"""Where images come from: positioned sources, each a length and an index.

  folder:/path              a tree with one folder of images per class
  tfds:imagenet2012[:train] a TensorFlow Datasets set in array_record files,
                            by name or by the folder of its prepared files
  arrow:/path[:train]       a Hugging Face `datasets` folder (save_to_disk)
  latents:/path[:val]       the precomputed latents of the official release
  digits                    1,797 handwritten digits of 16x16 pixels

source[i] is an Example. The same files give the same order on every machine,
and `fingerprint` tells whether they are the same. Nothing imports TensorFlow.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from irepa_jax import errors
from irepa_jax.data import digits
from irepa_jax.data import images
from irepa_jax.data import tree

KINDS = ('folder', 'tfds', 'arrow', 'latents', 'digits')
# Folders of the official release; the latents are those of sd-vae-ft-mse.
RELEASE_IMAGES = 'imagenet-latents-images'
RELEASE_LATENTS = 'imagenet-latents-sdvae-ft-mse-f8d4'


class Example(NamedTuple):
  """One image with its label."""

  image: Any  # bytes of an image file, uint8 [h w 3], or None
  label: int
  moments: Any = None  # float16 [h w 2c] (mean | std) where precomputed


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
class Table:
  """Rows with an image and a label, of tfds or Hugging Face datasets."""

  origin: str
  rows: Any
  image: str  # names of the columns
  label: str
  class_names: tuple
  fingerprint: str
  has_images, has_moments = True, False
  left_out = ''

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    row = self.rows[i]
    return Example(_image_bytes(row[self.image]), int(row[self.label]))

  def name(self, i):
    return f'{self.origin} row {i}'


@dataclasses.dataclass(frozen=True)
class Release:
  """The official release: moments [8 32 32], with images or labels alone."""

  latents: Any
  images: Any  # a Table, or None
  labels: Any  # read from a text file where there are no images
  origin: str
  fingerprint: str
  has_moments = True
  left_out = ''

  def __len__(self):
    return len(self.latents)

  def __getitem__(self, i):
    moments = _channels_last(self.latents[i]['data'])
    if self.images is None:
      return Example(None, int(self.labels[i]), moments)
    return self.images[i]._replace(moments=moments)

  def name(self, i):
    return f'{self.origin} row {i}'

  @property
  def has_images(self):
    return self.images is not None

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
  name, split = _split(rest, 'train')
  decoders = {'image': tfds.decode.SkipDecoding()}
  try:
    if pathlib.Path(name).is_dir():
      builder = tfds.builder_from_directory(name)
    else:
      builder = tfds.builder(name)
    rows = builder.as_data_source(split=split, decoders=decoders)
  except (
      tfds.core.DatasetNotFoundError,
      AssertionError,
      KeyError,
      NotImplementedError,
      OSError,
      ValueError,
  ) as error:
    raise errors.DataError(
        f'cannot open tfds:{name} split {split!r}: {_line(error)} (prepare it'
        " first, with file_format='array_record'; TFDS_DATA_DIR names its"
        ' folder)'
    ) from error
  label = builder.info.features['label']
  names = tuple(label.names) if hasattr(label, 'names') else ()
  origin = f'tfds:{builder.info.full_name}:{split}'
  return Table(origin, rows, 'image', 'label', names, origin)


def open_arrow(rest):
  """Opens a folder written by `datasets.Dataset.save_to_disk`."""
  path, split = _split(rest, None)
  rows, fingerprint = _load_arrow(path, split)
  features = rows.features
  image = _column(features, 'Image', path, ('image', 'img'))
  label = _column(features, 'ClassLabel', path, ('label', 'labels'))
  datasets = _import('datasets', 'irepa_jax[hf]')
  rows = rows.cast_column(image, datasets.Image(decode=False))
  names = tuple(getattr(features[label], 'names', None) or ())
  return Table(f'arrow:{path}', rows, image, label, names, fingerprint)


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
  sklearn = _import('sklearn.datasets', 'irepa_jax[quickstart]')
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
  datasets = _import('datasets', 'irepa_jax[hf]')
  path = pathlib.Path(path)
  _require_folder(path, 'folder of arrow files')
  try:
    rows = datasets.load_from_disk(str(path))
  except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as e:
    raise errors.DataError(
        f'cannot read {path} with datasets.load_from_disk: {_line(e)}'
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


def _column(features, kind, path, names):
  """Finds a column by the type of its feature, or by a usual name."""
  found = [k for k, v in features.items() if type(v).__name__ == kind]
  found = found or [name for name in names if name in features]
  if not found:
    raise errors.DataError(
        f'{path} has no {kind} column (nor one called {" or ".join(names)}):'
        f' {list(features)}'
    )
  return found[0]


def _image_bytes(value):
  """Returns the file of an image that tfds or datasets did not decode."""
  if not isinstance(value, dict):
    return value
  return value['bytes'] or pathlib.Path(value['path']).read_bytes()


def _channels_last(data):
  """Moments [8 32 32] or [1 8 32 32] as float16 [32 32 8]."""
  chw = np.asarray(data, np.float32).reshape(np.shape(data)[-3:])
  return chw.transpose(1, 2, 0).astype(np.float16)


def _read_labels(path):
  if not path.is_file():
    raise errors.DataError(f'neither {RELEASE_IMAGES} nor {path} was found')
  return np.array(path.read_text().split(), np.int64)


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


def _line(error):
  """The first line of an error of another library."""
  return str(error).strip().split('\n')[0][:200]
