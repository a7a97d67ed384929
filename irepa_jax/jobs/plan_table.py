"""The figures of a plan as tables: one run, or two side by side."""

import json
import os
import pathlib
import subprocess
import sys

from irepa_jax import errors


def table(report):
  """Returns the figures of one plan as text, the estimate's items at the end."""
  rows = list(flat(report).items())
  return '\n'.join([_lines(rows), *_items(report)])


def side_by_side(names, reports):
  """Returns the figures of two plans in two columns, and their ratio."""
  first, second = map(flat, reports)
  rows = [('', *names, 'ratio')]
  for key in dict.fromkeys([*first, *second]):
    pair = first.get(key, '-'), second.get(key, '-')
    rows.append((key, *pair, _ratio(*pair)))
  parts = [_lines(rows)]
  for name, report in zip(names, reports, strict=True):
    if items := _items(report):
      parts += ['', name, *items]
  return '\n'.join(parts)


def flat(report):
  """Returns the figures of a plan as {'estimate.mfu': 0.4, ...}."""
  found = {}
  for key, value in report.items():
    if key == 'largest':
      continue
    if isinstance(value, dict):
      found |= {f'{key}.{name}': v for name, v in flat(value).items()}
    else:
      found[key] = value
  return found


def elsewhere(name, config, flags):
  """Returns the plan of another configuration or checkout, in its own process.

  Args:
    name: a configuration, as for --config, or the folder of a checkout.
    config: the configuration where `name` is a checkout.
    flags: further words of the command.
  """
  checkout = (pathlib.Path(name) / 'irepa_jax').is_dir()
  if checkout and not config:
    raise errors.UsageError(f'--compare of the checkout {name} needs --config')
  root = name if checkout else str(pathlib.Path(__file__).parents[2])
  done = subprocess.run(
      [
          sys.executable,
          '-m',
          'irepa_jax.tools.plan',
          f'--config={config if checkout else name}',
          *flags,
      ],
      cwd=root if checkout else None,
      env=os.environ | {'PYTHONPATH': root},
      stdout=subprocess.PIPE,
      text=True,
  )
  if done.returncode:
    raise errors.UsageError(f'no plan of {name}: see the line above')
  return json.loads(done.stdout)


def _items(report):
  """Returns the lines of the largest items of an estimate."""
  largest = (report.get('estimate') or {}).get('largest', ())
  rows = [
      (f'{row["share"]:.1%}', f'{row["runs"]}x', row['what'], row['line'])
      for row in largest
  ]
  return [_lines(rows)] if rows else []


def _ratio(a, b):
  number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
  return f'{b / a:.3f}' if number(a) and number(b) and a else ''


def _lines(rows):
  """Returns rows with their columns under each other."""
  rows = [[str(cell) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
      '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows
  )
