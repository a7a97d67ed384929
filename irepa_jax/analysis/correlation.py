"""Does a metric of an encoder predict the FID of the model aligned to it?

Points come from a results table (CSV): a column `encoder`, a column to predict
(fid) and any others. `published.csv` beside this file holds the points that the
iREPA paper prints, one row per table entry, with the table they come from.
"""

import csv
import pathlib
from typing import NamedTuple

import numpy as np

from irepa_jax import errors

PUBLISHED = pathlib.Path(__file__).with_name('published.csv')
LEAST = 3  # points; two always lie on a line
RESAMPLES = 10_000
COVERAGE = 0.95


class Correlation(NamedTuple):
  """Pearson's r and Spearman's rho of n points, each with its interval."""

  n: int
  pearson: float
  pearson_interval: tuple[float, float]
  spearman: float
  spearman_interval: tuple[float, float]


class Panel(NamedTuple):
  """One metric against one score."""

  x: str  # column
  encoders: list[str]
  xs: np.ndarray  # [n]
  ys: np.ndarray  # [n]
  found: Correlation | None  # None with fewer than 3 points


def panel(rows, x, y):
  """Returns the Panel of column x against column y."""
  encoders, xs, ys = points(rows, x, y)
  return Panel(x, encoders, xs, ys, correlate(xs, ys))


def summary(panel, y):
  """Returns a Panel as a row of a table."""
  row = {'x': panel.x, 'y': y, 'n': len(panel.encoders)}
  if panel.found is None:
    return row
  for name in ('pearson', 'spearman'):
    low, high = getattr(panel.found, f'{name}_interval')
    row |= {
        name: getattr(panel.found, name),
        f'{name}_low': low,
        f'{name}_high': high,
    }
  return row


def read(path, where=()):
  """Reads rows of a results CSV as dicts; '' stays where a cell is empty.

  path: file, or 'published'.
  where: pairs (column, value) that a row must have, compared as text.
  """
  path = PUBLISHED if str(path) == 'published' else pathlib.Path(path)
  try:
    with open(path, newline='', encoding='utf-8') as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise errors.DataError(f'results {path} cannot be read: {error}') from error
  if not rows or 'encoder' not in rows[0]:
    raise errors.DataError(
        f'results {path} has no column encoder:'
        f' {list(rows[0]) if rows else "it is empty"}'
    )
  for column, _ in where:
    if column not in rows[0]:
      raise errors.UsageError(
          f'results {path} has no column {column!r}: {", ".join(rows[0])}'
      )
  kept = [r for r in rows if all(r[c] == v for c, v in where)]
  if not kept:
    seen = {c: sorted({r[c] for r in rows}) for c, _ in where}
    raise errors.UsageError(
        f'no row of {path} has {dict(where)}; there are {seen}'
    )
  return kept


def join(rows, metrics):
  """Adds the columns of a metrics table to the rows of the same encoder.

  NAME@WEIGHTS counts as NAME, except that random weights are no such encoder.
  A row keeps what it has; an encoder that occurs twice in `metrics` (with and
  without normalisation, say) is an error.
  """
  found = {}
  for row in metrics:
    name, _, weights = row['encoder'].partition('@')
    if weights == 'random':
      continue
    if name in found:
      raise errors.UsageError(
          f'the metrics have several rows of {name}; choose with'
          ' --metrics_where, for example gamma='
      )
    found[name] = row
  if not any(row['encoder'] in found for row in rows):
    raise errors.UsageError(
        f'the metrics are of {", ".join(found) or "random weights"}, the'
        f' results of {", ".join(dict.fromkeys(r["encoder"] for r in rows))}:'
        ' no encoder is in both'
    )
  filled = lambda row: {k: v for k, v in row.items() if v != ''}
  return [found.get(row['encoder'], {}) | filled(row) for row in rows]


def points(rows, x, y):
  """Returns (encoders, x [n], y [n]) of the rows that have both numbers."""
  chosen = [r for r in rows if r.get(x, '') != '' and r.get(y, '') != '']
  names = [r['encoder'] for r in chosen]
  try:
    pairs = np.array([[float(r[x]), float(r[y])] for r in chosen]).reshape(
        -1, 2
    )
  except ValueError as error:
    raise errors.DataError(
        f'columns {x} and {y} must hold numbers: {error}'
    ) from error
  finite = np.isfinite(pairs).all(axis=1)
  names = [n for n, keep in zip(names, finite, strict=True) if keep]
  return names, *pairs[finite].T


def correlate(x, y, *, seed=0):
  """Returns the Correlation of x [n] with y [n]; None with fewer than 3 points.

  Intervals are 95% percentiles over points drawn with replacement; draws in
  which x or y do not vary are left out. Below about 10 points read them as a
  warning, not as a measurement.
  """
  if len(x) < LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
    return None
  draws = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
  sample = np.stack([x, y])[:, draws]  # [2 resamples n]
  sample = sample[:, (np.ptp(sample, axis=-1) > 0).all(axis=0)]
  tail = 50 * (1 - COVERAGE)

  def interval(values):
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)

  return Correlation(
      len(x),
      float(pearson(x, y)),
      interval(pearson(*sample)),
      float(spearman(x, y)),
      interval(spearman(*sample)),
  )


def pearson(x, y):
  """Pearson's r along the last axis."""
  x = x - x.mean(axis=-1, keepdims=True)
  y = y - y.mean(axis=-1, keepdims=True)
  norm = np.sqrt(np.sum(x**2, axis=-1) * np.sum(y**2, axis=-1))
  return np.clip(np.sum(x * y, axis=-1) / norm, -1, 1)


def spearman(x, y):
  """Spearman's rho along the last axis: r of the ranks, ties averaged."""
  return pearson(mean_ranks(x), mean_ranks(y))


def mean_ranks(values):
  """Ranks along the last axis; equal values share their mean rank."""
  above = values[..., :, None] > values[..., None, :]
  equal = values[..., :, None] == values[..., None, :]
  return above.sum(axis=-1) + equal.sum(axis=-1) / 2
