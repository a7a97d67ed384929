"""The options of an analysis, and what their text means."""

import dataclasses

from irepa_jax import errors
from irepa_jax.analysis import figures
from irepa_jax.analysis import maps
from irepa_jax.analysis import measure
from irepa_jax.analysis import spatial
from irepa_jax.jobs import options


@dataclasses.dataclass(frozen=True)
class Options:
  """What is analysed, and how."""

  out: str = options.option('analysis', 'Folder of tables and figures.')
  data: str = options.option('', 'Images: a folder, data set or source.')
  image_size: int = options.option(
      0, 'Side of the crop; 0: that of --runs, else 256 pixels.', lower_bound=0
  )
  limit: int = options.option(
      0,
      'Only so many images, evenly spaced over the data; 0: all.',
      lower_bound=0,
  )
  encoders: tuple = options.option(
      (), 'NAME or NAME@WEIGHTS (path, hub id, random), several.'
  )
  tokens: tuple = options.option(
      (), 'Files of saved tokens [images tokens channels]: .npy or .pt.'
  )
  grid: str = options.option(
      '', 'Of saved tokens, rows x columns as in 6x10; square when empty.'
  )
  shuffled: bool = options.option(
      False, 'Also measure everything with shuffled tokens: a control.'
  )
  runs: tuple = options.option(
      (), 'Run directories whose own tokens are analysed.'
  )
  blocks: tuple = options.option(
      (), 'Of --runs, from 1; the aligned one when empty.'
  )
  times: tuple = options.option(('0.5',), 'Of --runs: 0 is data, 1 is noise.')
  masks: str = options.option(
      'auto', 'A folder of masks; auto guesses them; none: no SRSS.'
  )
  gamma: tuple = options.option(
      ('0.6',), 'Spatial normalisations to measure after, besides none.'
  )
  definition: str = options.option(
      'code', 'Of LDS and SRSS.', enum_values=list(spatial.DEFINITIONS)
  )
  batch_size: int = options.option(32, 'Images at a time.', lower_bound=1)
  points: str = options.option(
      '0.5,0.5;0.2,0.2;0.75,0.5', 'Of similarity maps: y,x;y,x ...'
  )
  drawn: int = options.option(
      2, 'Images in figures, evenly spaced; 0: no figures.', lower_bound=0
  )
  dpi: int = options.option(figures.DPI, 'Of the PNG figures.', lower_bound=1)
  results: str = options.option(
      'published', 'correlate: CSV of encoders and scores.'
  )
  where: tuple = options.option(
      (), 'correlate: rows of the results to take, column=value.'
  )
  metrics: str = options.option(
      '', 'correlate: metrics.csv to join to the results by encoder.'
  )
  metrics_where: tuple = options.option(
      ('gamma=',), 'correlate: rows of --metrics to take.'
  )
  x: tuple = options.option(
      ('linear_probe', 'lds', 'cds', 'srss', 'rmsc'), 'correlate: columns.'
  )
  y: str = options.option('fid', 'correlate: the column to explain.')


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
