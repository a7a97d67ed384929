"""Puts several runs side by side: a table of their scores and their curves.

Runs that differ only in their seed share a row and a colour.
"""

import collections
import contextlib
import difflib
import itertools
import json
import pathlib

import numpy as np

from irepa_jax import errors
from irepa_jax.names import file_names
from irepa_jax.names import places
from irepa_jax.names.experiments import base
from irepa_jax.runs import directory

# A colour-blind safe palette (Okabe and Ito, 2008).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def compare(folders, out, *, metrics, steps=()):
  """Writes OUT.md and OUT.png for run directories; returns the table.

  metrics: names in metrics.jsonl; steps: of the table, () is the last one.
  Raises UsageError for a metric or step that no run has. Without matplotlib
  there is no OUT.png.
  """
  places.try_file(f'{out}.md')
  rows = collections.defaultdict(list)
  for folder in folders:
    rows[row_name(folder, folders)].append(curves(folder))
  runs = [run for group in rows.values() for run in group]
  check(runs, metrics, steps)
  text = '\n'.join([table(rows, metrics, steps), *lengths(runs, metrics, steps)])
  pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
  pathlib.Path(f'{out}.md').write_text(text + '\n', encoding='utf-8')
  try:
    plot(rows, metrics, f'{out}.png')
  except ImportError:
    print('no plot: pip install matplotlib')
  return text


def check(runs, metrics, steps):
  """Raises UsageError for a metric or step that none of the runs has."""
  for metric in metrics:
    found = sorted({step for run in runs for step in run.get(metric, ())})
    if not found:
      known = sorted({name for run in runs for name in run} - {'step'})
      near = difflib.get_close_matches(metric, known, n=1)
      hint = f' (did you mean {near[0]!r}?)' if near else ''
      raise errors.UsageError(
          f'no run has a metric {metric!r}{hint}; they have'
          f' {", ".join(known) or "none"}'
      )
    for step in set(steps) - set(found):
      raise errors.UsageError(
          f'no run has {metric} at step {step}; it is there at'
          f' {", ".join(map(str, found[:8]))}{" ..." * (len(found) > 8)}'
      )


def lengths(runs, metrics, steps):
  """Returns a note where the last values are those of different steps."""
  ends = {max(run[m]) for m in metrics for run in runs if run.get(m)}
  if steps or len(ends) < 2:
    return []
  told = ', '.join(map(str, sorted(ends)))
  return ['', f'The runs end at different steps ({told}): --steps compares them.']


def curves(folder):
  """Reads metrics.jsonl as {metric: {step: value}}."""
  path = pathlib.Path(folder) / 'metrics.jsonl'
  if not path.exists():
    raise errors.UsageError(f'{folder} is not a run: it has no metrics.jsonl')
  found = collections.defaultdict(dict)
  for line in path.read_text(errors='replace').splitlines():
    with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill
      record = json.loads(line)
      step = record['step']
      for name, value in record.items():
        if isinstance(value, (int, float)):
          found[name][step] = value
  return found


def row_name(folder, folders):
  """Names a run by its preset, or by its folder where presets repeat."""
  config, *others = map(settings, [folder, *folders])
  unseeded = lambda c: {k: v for k, v in c.items() if k != 'seed'}
  twins = [c for c in others if c['preset'] == config['preset']]
  same = all(unseeded(c) == unseeded(config) for c in twins)
  return config['preset'] if same else file_names.shown(pathlib.Path(folder).name)


def settings(folder):
  """Reads the configuration of a run."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.exists():
    raise errors.UsageError(f'{folder} is not a run: it has no config.json')
  found = directory.read_config(folder, base.FIELDS)
  return json.loads(json.dumps(found))


def table(rows, metrics, steps):
  """Returns a Markdown table: a row per group, its seeds side by side."""
  columns = [(m, s) for m in metrics for s in steps or [None]]
  title = lambda m, s: f'{m.split("/")[-1]}' + (f' at {s}' if s else '')
  lines = [
      '| run | ' + ' | '.join(title(*c) for c in columns) + ' |',
      '|---' * (len(columns) + 1) + '|',
  ]
  for name, runs in rows.items():
    cells = [' '.join(cell(run, *c) for run in runs) for c in columns]
    name = name.replace('|', '\\|')  # a bar would end the cell
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def cell(run, metric, step):
  """Formats one value; a dash where the run has none."""
  values = run.get(metric, {})
  step = max(values, default=None) if step is None else step
  return f'{values[step]:.2f}' if step in values else '-'


def plot(rows, metrics, path):
  """Draws every metric against the step, one colour per group."""
  import matplotlib

  matplotlib.use('Agg')
  matplotlib.rcParams['text.parse_math'] = False  # names may have dollars
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
      1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False
  )
  for axis, metric in zip(axes[0], metrics, strict=True):
    for (name, runs), colour in zip(
        rows.items(), itertools.cycle(COLOURS), strict=False
    ):
      for run in runs:
        points = sorted(run.get(metric, {}).items())
        label = name if run is runs[0] else None
        axis.plot(*np.reshape(points, (-1, 2)).T, color=colour, label=label)
    axis.set(xlabel='step', ylabel=metric)
    axis.grid(alpha=0.3)
    axis.legend()
  figure.tight_layout()
  figure.savefig(path, dpi=150)
  pyplot.close(figure)
