"""How the tokens of a run come to resemble an encoder, checkpoint by checkpoint.

For every checkpoint the spatial metrics of the run's own tokens, and CKNNA and
CKA of their mean over each image with that of the encoder (as REPA, arXiv
2410.06940, reports it). All checkpoints see the same images and noise.
"""

import collections
import itertools

from irepa_jax import errors
from irepa_jax.analysis import figures
from irepa_jax.analysis import inputs
from irepa_jax.analysis import measure
from irepa_jax.analysis import report
from irepa_jax.analysis import similarity

DRAWN = ('cknna', 'cka', *report.METRICS)
LEAST = similarity.NEIGHBOURS + 1


def monitor(series, target, pictures, out, *, settings, say=print):
  """Follows series of checkpoints; writes monitor.csv and monitor.{pdf,png}.

  Args:
    series: (label, step, load) of representations, in the order of the table.
    target: load of the encoder's representation.
    pictures: inputs.Pictures.
    out: folder, which exists.
    settings: batch_size of inputs.batches; its masks and the definition of the
      metrics where they are not the defaults.
    say: receives a line per checkpoint.

  Returns:
    The rows of the table.
  """
  check(pictures)
  goal = _measure(target(), pictures, settings)
  rows = [row(goal, goal, goal.name, '')]
  for label, step, load in series:
    found = _measure(load(), pictures, settings)
    rows.append(row(found, goal, label, step))
    say(report.text(rows[-1:], list(rows[-1])).split('\n')[-1])
    report.write_csv(out / 'monitor.csv', rows)
  return rows


def pairs(candidates, pictures, *, settings):
  """Returns rows (tokens, other, cknna, cka) of every two candidates.

  candidates: (name, load) of representations; settings as in `monitor`.
  """
  check(pictures)
  if len(candidates) < 2:
    raise errors.UsageError('a comparison needs two sets of tokens')
  pooled = [
      (name, _measure(load(), pictures, settings).pooled)
      for name, load in candidates
  ]
  return [
      {'tokens': name, 'other': other} | _similarities(x, y)
      for (name, x), (other, y) in itertools.combinations(pooled, 2)
  ]


def check(pictures):
  """Raises UsageError for fewer images than CKNNA needs."""
  if len(pictures) < LEAST:
    raise errors.UsageError(
        f'{len(pictures)} images are too few: CKNNA looks at'
        f' {similarity.NEIGHBOURS} neighbours, so at least {LEAST} are needed'
    )


def row(found, goal, label, step):
  """Returns a row of the table from two measure.Measured."""
  numbers = {'tokens': label, 'step': step, 'target': goal.name}
  numbers |= _similarities(found.pooled, goal.pooled)
  for metric, values in found.values[measure.RAW].items():
    numbers[metric], numbers[f'{metric}_error'], _ = measure.mean_and_error(
        values
    )
  return numbers


def draw(rows, path, *, dpi=figures.DPI):
  """Draws the rows of `monitor`: a panel per metric, the encoder as a level."""
  goal, *points = rows
  metrics = [m for m in DRAWN if m in goal]
  series = {m: collections.defaultdict(list) for m in metrics}
  for point in points:
    for metric in metrics:
      series[metric][point['tokens']].append((point['step'], point[metric]))
  levels = {m: (goal['target'], goal[m]) for m in report.METRICS if m in goal}
  return figures.curves(series, levels, path, dpi=dpi)


def _similarities(x, y):
  return {
      'cknna': float(similarity.cknna(x, y)),
      'cka': float(similarity.cka(x, y)),
  }


def _measure(representation, pictures, settings):
  batches = inputs.batches(
      pictures, settings['batch_size'], settings.get('masks')
  )
  return measure.measure(
      representation,
      batches,
      gammas=(measure.RAW,),
      definition=settings.get('definition', 'code'),
  )
