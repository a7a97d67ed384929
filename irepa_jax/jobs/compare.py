"""Puts several runs side by side: a table of their scores and their curves.

Runs that differ only in their seed share a row and a colour.
"""

import collections
import itertools
import json
import pathlib

import numpy as np

from irepa_jax import errors
from irepa_jax.names import file_names

# A colour-blind safe palette (Okabe and Ito, 2008).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def compare(folders, out, *, metrics, steps=()):
  """Writes OUT.md and OUT.png for run directories; returns the table.

  metrics: names in metrics.jsonl; steps: of the table, () is the last one.
  """
  rows = collections.defaultdict(list)
  for folder in folders:
    rows[row_name(folder, folders)].append(curves(folder))
  text = table(rows, metrics, steps)
  pathlib.Path(f'{out}.md').write_text(text + '\n', encoding='utf-8')
  plot(rows, metrics, f'{out}.png')
  return text


def curves(folder):
  """Reads metrics.jsonl as {metric: {step: value}}."""
  path = pathlib.Path(folder) / 'metrics.jsonl'
  if not path.exists():
    raise errors.UsageError(f'{folder} is not a run: it has no metrics.jsonl')
  found = collections.defaultdict(dict)
  for line in path.read_text().splitlines():
    record = json.loads(line)
    for name, value in record.items():
      if isinstance(value, (int, float)):
        found[name][record['step']] = value
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
  return json.loads(path.read_text())


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
