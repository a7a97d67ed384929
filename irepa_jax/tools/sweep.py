"""Finds the best way to sample a run: average, guidance, interval, steps.

  python -m irepa_jax.tools.sweep --workdir=runs/xl \
      --reference=VIRTUAL_imagenet256_labeled.npz --ema=0,1 \
      --guidance=1,1.5,2,2.5 --interval=0:1,0:0.75 --sample_steps=250

evaluates every combination with few images (--coarse_count) and the best ones
(--finalists) with --count. Scores of other counts do not compare: FID falls with
the number of images. Every evaluation is a JSON in RUN/evaluations; those that
are there are not made again, so a killed sweep continues. Writes OUT.csv, OUT.md
and OUT.png, and prints the table.
"""

import csv
import io
import itertools
from typing import NamedTuple

from absl import flags
from etils import epath

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.distributed import processes
from irepa_jax.distributed import start
from irepa_jax.evals import judge as scored
from irepa_jax.jobs import evaluate as evaluating
from irepa_jax.jobs import saved_run
from irepa_jax.tools import compare
from irepa_jax.tools import evaluate
from irepa_jax.tools import sample

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
    judge: of evaluation.open_judge.
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
    found = evaluating.of_run(self._judge, run, loaded, count=count)
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
  names = [n for n in scored.MAIN if n in rows[0].scores]
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
    print('no plot: pip install irepa_jax[analysis]')
  for suffix, data in files.items():
    path = epath.Path(f'{out}.{suffix}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def plot(rows, metric):
  """Draws the metric against guidance, a line per choice of the rest; PNG."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  lines = {}
  for row in rows:
    lines.setdefault(_line(row), []).append(row)
  figure, axis = pyplot.subplots(figsize=(6.4, 4))
  colours = itertools.cycle(compare.COLOURS)
  for (label, group), colour in zip(lines.items(), colours, strict=False):
    shown = group + [r for r in rows if _starts(r, group[0])]
    points = sorted({(r.choice.guidance, r.scores[metric]) for r in shown})
    axis.plot(*zip(*points, strict=True), 'o-', color=colour, label=label)
  axis.set(xlabel='guidance', ylabel=metric)
  axis.grid(alpha=0.3)
  axis.legend(fontsize='small')
  figure.tight_layout()
  data = io.BytesIO()
  figure.savefig(data, dpi=150, format='png')
  pyplot.close(figure)
  return data.getvalue()


def _starts(row, other):
  """Whether a row without guidance is where the line of another begins."""
  same = lambda r: (r.choice.ema, r.choice.sample_steps, r.count)
  return row.choice.guidance == 1 and same(row) == same(other)


def _line(row):
  """Names the line of the plot that a row belongs to."""
  ema, _, low, high, steps = row.choice
  return f'ema {ema}, {low:g}..{high:g}, {steps} steps, {row.count:,} images'


# The command line ---------------------------------------------------------------

SWEPT = ('guidance', 'guidance_low', 'guidance_high', 'sample_steps')
FIXED = {k: v for k, v in sample.SETTINGS.items() if k not in SWEPT}


def define_flags():
  """Defines the flags of the command line."""
  evaluate.define_judging()
  flags.DEFINE_string('workdir', '', 'Run directory.')
  flags.DEFINE_string('reference', '', 'npz, folder or prepared data.')
  flags.DEFINE_list('ema', ['0'], 'Moving averages, from 0.')
  flags.DEFINE_list('guidance', ['1', '1.5', '2'], 'Scales; 1 is none.')
  flags.DEFINE_list('interval', ['0:1'], 'LOW:HIGH of t that is guided.')
  flags.DEFINE_list('sample_steps', [], 'Steps; default those of the run.')
  flags.DEFINE_integer('coarse_count', 5_000, 'Images for all.')
  flags.DEFINE_integer('count', 50_000, 'Images for the best.')
  flags.DEFINE_integer('finalists', 1, 'How many are the best.')
  flags.DEFINE_enum('metric', 'fid', sorted(RISES), 'That chooses them.')
  flags.DEFINE_integer('step', None, 'Checkpoint; default the newest.')
  flags.DEFINE_string('out', '', 'OUT.csv, OUT.md, OUT.png.')
  for name, (define, text) in FIXED.items():
    define(name, None, text + ' Default: that of the run.')


def numbers(name, texts, kind):
  """Parses the items of a list flag; UsageError names what is no number."""
  try:
    return [kind(text) for text in texts]
  except ValueError:
    raise errors.UsageError(
        f'--{name}={",".join(texts)}: {kind.__name__} numbers, comma separated'
    ) from None


def interval(text):
  """Parses LOW:HIGH."""
  parts = text.split(':')
  try:
    low, high = map(float, parts)
  except ValueError:
    raise errors.UsageError(
        f'--interval={text}: LOW:HIGH of t, as 0:0.75'
    ) from None
  return low, high


def main(args):
  """Runs the command; returns its exit status."""
  v = flags.FLAGS
  if args[1:] or not v.workdir or not v.reference:
    raise errors.UsageError(
        '--workdir=RUN and --reference=FILE are required; see --help'
    )
  if min(v.coarse_count, v.count) < 2 or v.finalists < 0:
    raise errors.UsageError(
        f'coarse_count {v.coarse_count} and count {v.count} are 2 or more,'
        f' finalists {v.finalists} 0 or more'
    )
  start.join()
  fixed = {k: v[k].value for k in FIXED if v[k].value is not None}
  run = saved_run.open_(v.workdir, **fixed)
  candidates = choices(
      numbers('ema', v.ema, int),
      numbers('guidance', v.guidance, float),
      [interval(text) for text in v.interval],
      numbers('sample_steps', v.sample_steps, int) or [run.config.sample_steps],
  )
  for choice in candidates:  # all of them are checked before the first
    saved_run.open_(v.workdir, **fixed, **choice.settings)
    saved_run.check_ema(run, choice.ema)
  judging = {name: v[name].value for name in evaluate.JUDGING}
  side = (run.config.image_size,) * 2
  judge = evaluating.open_judge(v.reference, side=side, **judging)
  rows = sweep(
      v.workdir,
      candidates,
      judge,
      coarse_count=v.coarse_count,
      count=v.count,
      finalists=v.finalists,
      metric=v.metric,
      step=v.step,
      settings=fixed,
  )
  if rows is None:
    return preemption.EXIT_STATUS
  out = v.out or f'{run.workdir}/evaluations/sweep-{v.metric}'
  processes.on_first(lambda: write(out, rows, v.metric))
  if processes.is_first():
    print(f'{table(rows)}\n-> {out}.csv')
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
