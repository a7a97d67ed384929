"""Finds the best way to sample a run: average, guidance, interval, steps.

Every combination is evaluated with few images and the best ones with more.
Scores of different counts do not compare: FID falls with the number of images.
Every evaluation is a JSON below the run, and is not made twice, so a killed
sweep continues.
"""

import csv
import io
import itertools
from typing import NamedTuple

from etils import epath

from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.distributed import processes
from irepa_jax.evals import judge as judges
from irepa_jax.jobs import compare
from irepa_jax.jobs import evaluate
from irepa_jax.jobs import sample
from irepa_jax.jobs import saved_run

# Whether more of a score is better.
RISES = {
    'fid': False,
    'sfid': False,
    'kid': False,
    'inception_score': True,
    'precision': True,
    'recall': True,
}


class Choice(NamedTuple):
  """One way to sample."""

  ema: int  # which average, from 0
  guidance: float
  low: float  # guided where low <= t <= high
  high: float
  sample_steps: int

  @property
  def settings(self):
    """The fields of the configuration that it replaces."""
    return {
        'guidance': self.guidance,
        'guidance_low': self.low,
        'guidance_high': self.high,
        'sample_steps': self.sample_steps,
    }

  def __str__(self):
    guided = f'guidance {self.guidance:g}'
    if self.guidance != 1:
      guided += f' in {self.low:g}..{self.high:g}'
    return f'ema {self.ema}, {guided}, {self.sample_steps} steps'


class Row(NamedTuple):
  """A choice with its scores."""

  choice: Choice
  count: int
  scores: dict[str, float]


def choices(emas, guidances, intervals, sample_steps):
  """Returns all combinations; without guidance the interval does not matter."""
  found = []
  for ema, guidance, steps, (low, high) in itertools.product(
      emas, guidances, sample_steps, intervals
  ):
    if guidance == 1:
      low, high = 0.0, 1.0
    choice = Choice(ema, guidance, low, high, steps)
    if choice not in found:
      found.append(choice)
  return found


def sweep(
    workdir,
    candidates,
    reference,
    *,
    out='',
    metric='fid',
    settings=None,
    judging=None,
    **counts,
):
  """Finds the best candidate; returns the exit status, 75 when told to stop.

  Args:
    workdir: of the run.
    candidates: of `choices`; all of them are checked before the first.
    reference: npz, folder or data set.
    out: OUT.csv, OUT.md and OUT.png; '' is below the run directory.
    metric: that chooses.
    settings: other fields of the configuration.
    judging: of evaluate.open_judge.
    **counts: coarse_count, count, finalists and step of `evaluated`.
  """
  settings = settings or {}
  run = saved_run.open_(workdir, **settings)
  for choice in candidates:
    saved_run.open_(workdir, **settings, **choice.settings)
    saved_run.check_ema(run, choice.ema)
  side = (run.config.image_size,) * 2
  judge = evaluate.open_judge(reference, side=side, **judging or {})
  rows = evaluated(
      workdir, candidates, judge, metric=metric, settings=settings, **counts
  )
  if rows is None:
    return preemption.EXIT_STATUS
  out = out or f'{run.workdir}/evaluations/sweep-{metric}'
  processes.on_first(lambda: write(out, rows, metric))
  if processes.is_first():
    print(f'{table(rows)}\n-> {out}.csv')
  return 0


def evaluated(
    workdir,
    candidates,
    judge,
    *,
    coarse_count=5_000,
    count=50_000,
    finalists=1,
    metric='fid',
    step=None,
    settings=None,
):
  """Evaluates candidates, then the best with more images.

  Args:
    workdir: of the run.
    candidates: of `choices`.
    judge: of evaluate.open_judge.
    coarse_count: images for each candidate.
    count: images for the finalists.
    finalists: how many of the best.
    metric: that chooses them.
    step: of the checkpoint; None is the newest.
    settings: other fields of the configuration.

  Returns:
    Rows from the best to the worst, the finalists first; None when told to
    stop.
  """
  score = _Scorer(workdir, judge, step, settings or {})
  coarse = score.all(candidates, coarse_count)
  if coarse is None:
    return None
  _check_metric(coarse[0], metric)
  coarse = ranked(coarse, metric)
  best = [row.choice for row in coarse[:finalists]]
  final = score.all(best, count)
  return None if final is None else ranked(final, metric) + coarse


def ranked(rows, metric):
  """Sorts rows from the best to the worst."""
  return sorted(rows, key=lambda r: r.scores[metric], reverse=RISES[metric])


class _Scorer:
  """Evaluates choices; the weights of one average are on the devices."""

  def __init__(self, workdir, judge, step, settings):
    self._workdir, self._judge = workdir, judge
    self._step, self._settings = step, settings
    self._loaded = None

  def all(self, candidates, count):
    """Returns rows, or None when told to stop."""
    rows = []
    for number, choice in enumerate(candidates, 1):
      if processes.is_first():
        print(f'{number}/{len(candidates)}: {choice}, {count:,} images')
      scores = self._one(choice, count)
      if scores is None:
        return None
      rows.append(Row(choice, count, scores))
    return rows

  def _one(self, choice, count):
    run = saved_run.open_(self._workdir, **self._settings, **choice.settings)
    loaded = self._loaded
    if loaded is None or loaded.ema != choice.ema:
      loaded = self._loaded = sample.load(
          run, self._judge.mesh, ema=choice.ema, step=self._step
      )
      self._step = loaded.meta['step']  # also if newer ones are saved
    found = evaluate.of_run(self._judge, run, loaded, count=count)
    if found is None:
      return None
    return {k: v for k, v in found.items() if isinstance(v, float)}


def _check_metric(row, metric):
  if metric not in row.scores:
    raise errors.UsageError(
        f'--metric={metric} is not among the scores: {", ".join(row.scores)}'
    )


def columns(rows):
  """Returns the header and the rows of the table as tuples."""
  names = [n for n in judges.MAIN if n in rows[0].scores]
  names += sorted(set(rows[0].scores) - set(names))
  header = (*Choice._fields, 'count', *names)
  values = [
      (*r.choice, r.count, *(r.scores.get(n) for n in names)) for r in rows
  ]
  return header, values


def table(rows):
  """Returns the rows as Markdown."""
  header, values = columns(rows)
  number = lambda x: '-' if x is None else f'{x:.6g}'
  lines = [header, ['---'] * len(header)]
  lines += [[number(x) for x in value] for value in values]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write(out, rows, metric):
  """Writes OUT.csv, OUT.md and OUT.png."""
  text = io.StringIO()
  header, values = columns(rows)
  csv.writer(text, lineterminator='\n').writerows([header, *values])
  files = {'csv': text.getvalue().encode(), 'md': f'{table(rows)}\n'.encode()}
  try:
    files['png'] = plot(rows, metric)
  except ImportError:
    print('no plot: pip install matplotlib')
  for suffix, data in files.items():
    path = epath.Path(f'{out}.{suffix}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def plot(rows, metric):
  """Draws the curves of a metric; PNG."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  along, lines = curves(rows, metric)
  figure, axis = pyplot.subplots(figsize=(6.4, 4))
  colours = itertools.cycle(compare.COLOURS)
  for (label, points), colour in zip(lines.items(), colours, strict=False):
    axis.plot(*zip(*points, strict=True), 'o-', color=colour, label=label)
  axis.set(xlabel=along, ylabel=metric)
  axis.grid(alpha=0.3)
  axis.legend(fontsize='small')
  figure.tight_layout()
  data = io.BytesIO()
  figure.savefig(data, dpi=150, format='png')
  pyplot.close(figure)
  return data.getvalue()


def curves(rows, metric):
  """Returns (what varies, {label: points}): guidance, or the number of steps.

  It is the steps where all rows have the same guidance.
  """
  if len({row.choice.guidance for row in rows}) == 1:
    along, label, starts = 'sample_steps', _guided, lambda *_: False
  else:
    along, label, starts = 'guidance', _stepped, _starts
  lines = {}
  for row in rows:
    lines.setdefault(label(row), []).append(row)
  for name, group in lines.items():
    shown = group + [r for r in rows if starts(r, group[0])]
    lines[name] = sorted(
        {(getattr(r.choice, along), r.scores[metric]) for r in shown}
    )
  return along, lines


def _starts(row, other):
  """Whether a row without guidance is where the line of another begins."""
  same = lambda r: (r.choice.ema, r.choice.sample_steps, r.count)
  return row.choice.guidance == 1 and same(row) == same(other)


def _stepped(row):
  """Names the line along guidance that a row belongs to."""
  ema, _, low, high, steps = row.choice
  return f'ema {ema}, {low:g}..{high:g}, {steps} steps, {row.count:,} images'


def _guided(row):
  """Names the line along the number of steps."""
  ema, guidance, low, high, _ = row.choice
  at = f'guidance {guidance:g} in {low:g}..{high:g}'
  return f'ema {ema}, {at}, {row.count:,} images'
