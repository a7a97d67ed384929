"""Tables of an analysis: rows of means with their errors, and the ranking.

The order of encoders is that of their mean rank over the metrics; its interval
comes from resampling the images (bootstrap). Encoders whose intervals overlap
are not told apart by these images.
"""

import csv
import json
import math
import pathlib

import numpy as np

from irepa_jax.analysis import measure
from irepa_jax.names import file_names

METRICS = ('lds', 'cds', 'srss', 'rmsc')
RESAMPLES = 1000
COVERAGE = 0.95


def rows(measured, definition):
  """Returns one dict per representation and normalisation, for a table."""
  table = []
  for item in measured:
    for gamma, values in item.values.items():
      row = {
          'encoder': item.name,
          'gamma': gamma,
          'definition': definition,
          'images': len(item.pooled),
          'tokens': math.prod(item.grid),
          'width': item.pooled.shape[1],
      }
      for metric in (m for m in METRICS if m in values):
        mean, error, count = measure.mean_and_error(values[metric])
        row |= {metric: mean, f'{metric}_error': error}
        if metric == 'srss':
          row['srss_images'] = count
      row['images_per_second'] = item.images_per_second
      table.append(row)
  return table


def per_image(measured, names):
  """Returns one dict per image, representation and normalisation."""
  table = []
  for item in measured:
    for gamma, values in item.values.items():
      fixed = {'encoder': item.name, 'gamma': gamma}
      for i, name in enumerate(names):
        numbers = {m: float(v[i]) for m, v in values.items()}
        table.append(fixed | {'image': name} | numbers)
  return table


def ranking(measured, gamma=measure.RAW, seed=0):
  """Returns dicts (place, encoder, mean_rank, low, high, ranks), best first.

  All representations must have been measured on the same images.
  """
  metrics = [m for m in METRICS if m in measured[0].values[gamma]]
  values = np.float64(
      [[item.values[gamma][m] for m in metrics] for item in measured]
  )  # [encoders metrics images]
  ranks = _ranks(np.nanmean(values, axis=-1))
  rng = np.random.default_rng(seed)
  draws = np.stack(
      [
          _ranks(_resampled_mean(values, rng)).mean(axis=1)
          for _ in range(RESAMPLES)
      ]
  )
  tail = 50 * (1 - COVERAGE)
  low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
  mean = ranks.mean(axis=1)
  return [
      {
          'place': place + 1,
          'encoder': measured[i].name,
          'mean_rank': float(mean[i]),
          'low': float(low[i]),
          'high': float(high[i]),
          **{
              f'{m}_rank': int(r)
              for m, r in zip(metrics, ranks[i], strict=True)
          },
      }
      for place, i in enumerate(np.argsort(mean, kind='stable'))
  ]


def write_csv(path, table):
  """Writes dicts as CSV in UTF-8; columns in the order they first appear."""
  columns = list(dict.fromkeys(key for row in table for key in row))
  shown = lambda v: file_names.shown(v) if isinstance(v, str) else v
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns, restval='')
    writer.writeheader()
    writer.writerows({k: shown(v) for k, v in row.items()} for row in table)


def write_json(path, content):
  """Writes JSON; numbers that are not finite become null."""
  text = json.dumps(_plain(content), indent=1, allow_nan=False)
  pathlib.Path(path).write_text(text + '\n')


def text(table, columns):
  """Formats dicts as an aligned table for a terminal."""
  columns = [c for c in columns if any(c in row for row in table)]
  lines = [
      columns,
      *([_cell(row.get(c, '')) for c in columns] for row in table),
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
      '  '.join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip()
      for line in lines
  )


def _resampled_mean(values, rng):
  """Mean over images drawn with replacement, the same for every encoder."""
  count = values.shape[-1]
  weights = np.bincount(rng.integers(count, size=count), minlength=count)
  known = np.isfinite(values)
  total = np.where(known, values, 0) @ weights
  return total / np.maximum(known @ weights, 1)


def _ranks(means):
  """1 for the largest of each column of [encoders metrics]."""
  order = np.argsort(-means, axis=0, kind='stable')
  return np.argsort(order, axis=0, kind='stable') + 1


def _cell(value):
  if isinstance(value, float):
    return '-' if math.isnan(value) else f'{value:.4g}'
  return str(value)


def _plain(value):
  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
