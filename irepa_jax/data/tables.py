"""Rows with an image and a label: which columns, and what their values mean.

Of tfds and Hugging Face `datasets`. A column is taken by its type and, where
several have it, by its usual name; what else might have been meant is told, and
SPEC,image=NAME,label=NAME chooses. A row without an image or without a label is
refused by itself, so that a preparation skips, counts and names it.
"""

import dataclasses
import math
import pathlib
import re
from typing import Any
from typing import NamedTuple

import numpy as np

from irepa_jax import errors

CHOICE = re.compile(r',(image|label)=([^,]+)$')
IMAGE_NAMES = ('image', 'img')
LABEL_NAMES = ('label', 'labels', 'class', 'cls', 'target')
IMAGES, CLASSES = ('Image',), ('ClassLabel',)  # names of features in both


class Example(NamedTuple):
  """One image with its label."""

  image: Any  # bytes of an image file, uint8 [h w 3], or None
  label: int
  moments: Any = None  # float16 [h w 2c] (mean | std) where precomputed


class Columns(NamedTuple):
  """The columns of a table, and what the user should know of the choice."""

  image: str
  label: str
  note: str


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of tfds or Hugging Face datasets.

  classes: {word: label} where labels are words; else None.
  """

  origin: str
  rows: Any
  columns: Columns
  class_names: tuple
  fingerprint: str
  classes: dict | None = None
  has_images, has_moments = True, False

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    try:
      row = self.rows[i]
    except Exception as error:  # of pyarrow or array_record: many types
      raise errors.DataError(f'cannot be read: {first_line(error)}') from error
    image = _file(row[self.columns.image])
    return Example(image, _label(row[self.columns.label], self.classes))

  def name(self, i):
    return f'{self.origin} row {i}'

  @property
  def left_out(self):
    return self.columns.note


def choices(spec):
  """Splits SPEC[,image=NAME][,label=NAME] into (SPEC, {'image': NAME ...})."""
  chosen = {}
  while (found := CHOICE.search(spec)) and not pathlib.Path(spec).exists():
    chosen[found[1]] = found[2]
    spec = spec[: found.start()]
  return spec, chosen


def columns(features, origin, chosen) -> Columns:
  """Finds the columns of images and labels; DataError where it would be a guess.

  features: {column: its type}, of tfds or datasets; chosen: of `choices`.
  """
  find = lambda what, *usual: _column(features, origin, chosen, what, *usual)
  image, others = find('image', IMAGES, IMAGE_NAMES)
  label, more = find('label', CLASSES, LABEL_NAMES)
  note = _note('images', 'image', image, others)
  notes = [note, _note('labels', 'label', label, more)]
  return Columns(image, label, '; '.join(filter(None, notes)))


def first_line(error):
  """The first line of an error of another library."""
  text = str(error).strip().split('\n')[0][:200]
  return text or type(error).__name__


def _column(features, origin, chosen, what, kinds, names):
  """Returns (the column, others that might have been meant)."""
  if what in chosen:
    if chosen[what] not in features:
      raise errors.DataError(
          f'{origin} has no column {chosen[what]!r}: {", ".join(features)}'
      )
    return chosen[what], []
  typed = [k for k, v in features.items() if type(v).__name__ in kinds]
  named = [name for name in names if name in features]
  possible = typed or named
  usual = [name for name in possible if name in names]
  if not possible:
    raise errors.DataError(
        f'{origin} has no {kinds[0]} column, nor one called'
        f' {" or ".join(names)}, but {", ".join(features)}; choose with'
        f' ,{what}=NAME'
    )
  if len(possible) > 1 and len(usual) != 1:
    raise errors.DataError(
        f'{origin}: which column is the {what}? {", ".join(possible)}; choose'
        f' with ,{what}=NAME'
    )
  found = usual[0] if len(possible) > 1 else possible[0]
  # A column of the right name, but of no right type, may have been meant too.
  others = dict.fromkeys([*possible, *named])
  return found, [name for name in others if name != found]


def _note(plural, what, taken, others):
  if not others:
    return ''
  return (
      f'column {", ".join(others)} ({plural} are those of {taken};'
      f' ,{what}=NAME takes others)'
  )


def _file(value):
  """Returns the file of an image that tfds or datasets did not decode."""
  path = None
  if isinstance(value, dict):
    value, path = value.get('bytes'), value.get('path')
  if not value and path:
    return _read(path)
  if value is None or len(value) == 0:
    raise errors.DataError('the row has no image')
  return value


def _read(path):
  try:
    return pathlib.Path(path).read_bytes()
  except (OSError, ValueError) as error:
    raise errors.DataError(f'image {path}: {first_line(error)}') from error


def _label(value, classes):
  """Returns a label as a whole number; DataError where it is none."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    raise errors.DataError('the row has no label')
  if classes is not None:
    return classes[value]
  if np.ndim(value) or not float(value).is_integer():
    raise errors.DataError(f'label {value} is no whole number')
  return int(value)
