"""Which encoder should a model be aligned to? The analysis of the iREPA paper.

  measure     metrics, ranking, similarity maps and components of tokens
  correlate   scores against metrics of encoders, with r and its interval
  monitor     the tokens of runs over their checkpoints, against an encoder
  similarity  CKNNA and CKA of every two sets of tokens, on the same images

Each takes analyze_options.Options.
"""

import collections
import dataclasses

from irepa_jax import errors
from irepa_jax.analysis import correlation
from irepa_jax.analysis import figures
from irepa_jax.analysis import inputs
from irepa_jax.analysis import monitor as monitors
from irepa_jax.analysis import report
from irepa_jax.analysis import representations
from irepa_jax.analysis import survey
from irepa_jax.distributed import sharding
from irepa_jax.jobs import analyze_options as options
from irepa_jax.jobs import run_tokens
from irepa_jax.jobs import saved_run

# Of the published points: REPA on SiT-XL/2 at 100k, as in the paper's figure.
PAPER_FIGURE = (
    ('model', 'SiT-XL/2'),
    ('iterations', '100000'),
    ('method', 'repa'),
    ('guidance', '1.0'),
    ('primary', 'yes'),
)


def measure(v):
  """Measures encoders, saved tokens and runs, and ranks them."""
  mesh = sharding.make_mesh()
  points, gammas = options.points(v), options.gammas(v)
  candidates, pictures = chosen(v, mesh)
  if v.shuffled:
    candidates += map(representations.shuffled, candidates[:])
  measured = survey.survey(
      candidates,
      pictures,
      v.out,
      masks=inputs.mask_reader(v.masks, pictures.size),
      gammas=gammas,
      definition=v.definition,
      batch_size=batch_size(v, pictures, mesh),
      points=points,
      drawn=v.drawn,
      dpi=v.dpi,
      settings=dataclasses.asdict(v),
  )
  print(survey.describe(measured, v.definition))
  print(f'\ntables and figures: {v.out}')


def chosen(v, mesh):
  """Returns (candidates, pictures): what is to be analysed, on which images."""
  runs = [saved_run.open_(path) for path in v.runs]
  size = run_tokens.image_size(runs, v.image_size)
  encoders = [representations.encoder(name, size, mesh) for name in v.encoders]
  tokens = [representations.saved_tokens(p, options.grid(v)) for p in v.tokens]
  if not encoders and not tokens and not runs:
    raise errors.UsageError('name --encoders, --tokens or --runs to analyse')
  pictures = open_pictures(v, runs, size)
  check_tokens(tokens, pictures)
  own = [
      run_tokens.candidate(run, mesh, pictures, block, t)
      for run in runs
      for block, t in run_tokens.places(v.blocks, v.times)
  ]
  candidates = [*encoders, *(t[:2] for t in tokens), *own]
  check_names(name for name, _ in candidates)
  return candidates, pictures


def correlate(v):
  """Draws scores against metrics of encoders, with r and its interval."""
  where = options.where(v.where)
  if v.results == 'published' and not where:
    where = PAPER_FIGURE
  rows = correlation.read(v.results, where)
  if v.metrics:
    table = correlation.read(v.metrics, options.where(v.metrics_where))
    rows = correlation.join(rows, table)
  panels = [correlation.panel(rows, x, v.y) for x in v.x]
  shown = [panel for panel in panels if len(panel.encoders)]
  if not shown:
    raise errors.UsageError(
        f'no row has {v.y} and one of {", ".join(v.x)}; --metrics adds'
        ' the columns of a metrics.csv'
    )
  out = survey.folder(v.out)
  table = [correlation.summary(panel, v.y) for panel in panels]
  report.write_csv(out / 'correlation.csv', table)
  report.write_json(out / 'correlation.json', table)
  print(report.text(table, list(table[0])))
  if v.drawn:
    figures.correlations(shown, v.y, out / 'correlation', dpi=v.dpi)
  print(f'\ntables and figures: {out}')


def monitor(v):
  """Follows the tokens of runs over their checkpoints."""
  mesh = sharding.make_mesh()
  runs = [saved_run.open_(path) for path in v.runs]
  if not runs:
    raise errors.UsageError('name the run directories to follow with --runs')
  size = run_tokens.image_size(runs, v.image_size)
  _, target = representations.encoder(target_name(v, runs), size, mesh)
  pictures = open_pictures(v, runs, size)
  series = []
  for run in runs:
    for block, t in run_tokens.places(v.blocks, v.times):
      for step in run_tokens.steps(run):
        name, load = run_tokens.candidate(
            run, mesh, pictures, block, t, step=step
        )
        series.append((name, step, load))
  check_names(f'{name} step {step}' for name, step, _ in series)
  out = survey.folder(v.out)
  settings = {
      'batch_size': batch_size(v, pictures, mesh),
      'masks': inputs.mask_reader(v.masks, size),
      'definition': v.definition,
  }
  rows = monitors.monitor(series, target, pictures, out, settings=settings)
  print(report.text(rows, list(rows[0])))
  if v.drawn:
    monitors.draw(rows, out / 'monitor', dpi=v.dpi)
  print(f'\ntable and figure: {out}')


def similarity(v):
  """Compares every two of encoders, saved tokens and runs by CKNNA and CKA."""
  mesh = sharding.make_mesh()
  candidates, pictures = chosen(v, mesh)
  settings = {'batch_size': batch_size(v, pictures, mesh)}
  rows = monitors.pairs(candidates, pictures, settings=settings)
  out = survey.folder(v.out)
  report.write_csv(out / 'similarity.csv', rows)
  print(report.text(rows, list(rows[0])))
  print(f'\ntable: {out / "similarity.csv"}')


def target_name(v, runs):
  """Returns the encoder of --encoders, or else that of the runs."""
  names = v.encoders
  for run in runs:
    names = names or [encoder.name for encoder in run.built.encoders]
  if len(names) != 1:
    raise errors.UsageError(
        f'the runs are compared with one encoder, not {names or "none"}: name'
        ' it with --encoders'
    )
  return names[0]


def batch_size(v, pictures, mesh):
  """Returns --batch_size, no more than needed, in whole rows per device."""
  unit = sharding.row_parts(mesh)
  return -(-min(v.batch_size, len(pictures)) // unit) * unit


def open_pictures(v, runs, size):
  """Opens --data, or else the data set of the first run."""
  data = v.data or (runs[0].data if runs else '')
  if not data:
    raise errors.UsageError(
        '--data is required: a folder of images, a prepared data set,'
        f' {inputs.PHOTOS}, or a source such as digits'
    )
  pictures = inputs.open_pictures(data, size, v.limit)
  print(pictures.describe())
  return pictures


def check_tokens(tokens, pictures):
  """Raises DataError for saved tokens of another number of images."""
  for name, _, count in tokens:
    if count != len(pictures):
      raise errors.DataError(
          f'{name} holds tokens of {count} images, --data gives'
          f' {len(pictures)}'
      )


def check_names(names):
  """Raises UsageError where a name, by which tables tell apart, repeats."""
  name, count = collections.Counter(names).most_common(1)[0]
  if count > 1:
    raise errors.UsageError(
        f'{count} sources of tokens are called {name!r}: give files and run'
        ' directories different names, and name an encoder once'
    )


COMMANDS = {
    'measure': measure,
    'correlate': correlate,
    'monitor': monitor,
    'similarity': similarity,
}
