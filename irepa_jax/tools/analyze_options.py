"""The options of irepa_jax.tools.analyze, and what their text means."""

import functools

from absl import flags

from irepa_jax import errors
from irepa_jax.analysis import figures
from irepa_jax.analysis import maps
from irepa_jax.analysis import measure
from irepa_jax.analysis import spatial

_count = functools.partial(flags.DEFINE_integer, lower_bound=0)
_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)
_definition = functools.partial(
    flags.DEFINE_enum, enum_values=list(spatial.DEFINITIONS)
)
OPTIONS = {
    'out': (flags.DEFINE_string, 'analysis', 'Folder of tables and figures.'),
    'data': (flags.DEFINE_string, '', 'Images: a folder, data set or source.'),
    'image_size': (
        _count, 0, 'Side of the crop; 0: that of --runs, else 256 pixels.'
    ),
    'limit': (
        _count, 0, 'Only so many images, evenly spaced over the data; 0: all.'
    ),
    'encoders': (
        flags.DEFINE_list, [],
        'NAME or NAME@WEIGHTS (path, hub id, random), several.',
    ),
    'tokens': (
        flags.DEFINE_list, [],
        'Files of saved tokens [images tokens channels]: .npy or .pt.',
    ),
    'grid': (
        flags.DEFINE_string, '',
        'Of saved tokens, rows x columns as in 6x10; square when empty.',
    ),
    'shuffled': (
        flags.DEFINE_bool, False,
        'Also measure everything with shuffled tokens: a control.',
    ),
    'runs': (
        flags.DEFINE_list, [], 'Run directories whose own tokens are analysed.'
    ),
    'blocks': (
        flags.DEFINE_list, [], 'Of --runs, from 1; the aligned one when empty.'
    ),
    'times': (flags.DEFINE_list, ['0.5'], 'Of --runs: 0 is data, 1 is noise.'),
    'masks': (
        flags.DEFINE_string, 'auto',
        'A folder of masks; auto guesses them; none: no SRSS.',
    ),
    'gamma': (
        flags.DEFINE_list, ['0.6'],
        'Spatial normalisations to measure after, besides none.',
    ),
    'definition': (_definition, 'code', 'Of LDS and SRSS.'),
    'batch_size': (_positive, 32, 'Images at a time.'),
    'points': (
        flags.DEFINE_string, '0.5,0.5;0.2,0.2;0.75,0.5',
        'Of similarity maps: y,x;y,x ...',
    ),
    'drawn': (_count, 2, 'Images in figures; 0: no figures.'),
    'dpi': (_positive, figures.DPI, 'Of the PNG figures.'),
    'results': (
        flags.DEFINE_string, 'published',
        'correlate: CSV of encoders and scores.',
    ),
    'where': (
        flags.DEFINE_list, [],
        'correlate: rows of the results to take, column=value.',
    ),
    'metrics': (
        flags.DEFINE_string, '',
        'correlate: metrics.csv to join to the results by encoder.',
    ),
    'metrics_where': (
        flags.DEFINE_list, ['gamma='], 'correlate: rows of --metrics to take.'
    ),
    'x': (
        flags.DEFINE_list, ['linear_probe', 'lds', 'cds', 'srss', 'rmsc'],
        'correlate: columns.',
    ),
    'y': (flags.DEFINE_string, 'fid', 'correlate: the column to explain.'),
}  # fmt: skip


def define_flags(values=flags.FLAGS):
  """Defines the flags of the command line."""
  for name, (define, default, text) in OPTIONS.items():
    define(name, default, help=text, flag_values=values)


def read(values):
  """Returns the options alone, as a dict."""
  return {name: values[name].value for name in OPTIONS}


def grid(v):
  """Returns --grid as (rows, columns), or None."""
  if not v.grid:
    return None
  parts = v.grid.split('x')
  if len(parts) != 2 or not all(part.isdigit() for part in parts):
    raise errors.UsageError(f'--grid={v.grid}: rows x columns, as in 6x10')
  return int(parts[0]), int(parts[1])


def gammas(v):
  """Returns what is measured: tokens as they are, and each --gamma."""
  try:
    return (measure.RAW, *(f'{float(gamma):g}' for gamma in v.gamma))
  except ValueError as error:
    raise errors.UsageError(
        f'--gamma={",".join(v.gamma)}: numbers such as 0.6'
    ) from error


def points(v):
  """Returns --points as (y, x) in fractions of the image."""
  try:
    return maps.parse_points(v.points)
  except ValueError as error:
    raise errors.UsageError(
        f'--points={v.points}: y,x;y,x in fractions of the image, 0 to 1'
    ) from error


def where(pairs):
  """Returns (column, value) of each column=value."""
  for pair in pairs:
    if '=' not in pair:
      raise errors.UsageError(f'{pair!r} is not of the form column=value')
  return [tuple(pair.split('=', 1)) for pair in pairs]
