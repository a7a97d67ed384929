"""The compiler as a stopwatch: what it expects each part of a program to take.

The TPU compiler writes into a compiled program how many cycles it expects of
every operation. Their sum, with what stands in a loop counted by its trips,
over the clock of the chip is an estimate of the time of one step. It ranks
variants of a program; it is not a measurement: collectives that run beside
arithmetic, and calls of kernels that the compiler does not know, are not in it.
"""

import collections
import re
from typing import NamedTuple

COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.-]+) \(.*\{$')
OPERATION = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(')
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
LOOP = re.compile(r'condition=%?([\w.-]+), body=%?([\w.-]+)')
CALLS = re.compile(r'(?:to_apply|calls|called_computations)=\{?%?([\w.-]+)')
BRANCHES = re.compile(r'(?:branch_computations|true_computation)=([^}]*)')
COMPARED = re.compile(r'ROOT .* compare\((.*?)\), direction=(L[TE])')
CONSTANT = re.compile(r'%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Calls that only name or lay out memory.
FREE = {'AllocateBuffer', 'ConcatBitcast', 'Sharding', 'GatherScatterIndices'}
PATH = re.compile(r'op_name="([^"]*)"')
FRAME = re.compile(r'stack_frame_id=(\d+)')
PLACE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')
# Steps of a JAX path that are no modules.
FRAMES = {
    'while', 'body', 'cond', 'closed_call', 'checkpoint', 'rematted_computation'
}  # fmt: skip
# Where operations get their derivatives: the line that asks for one says more.
WRAPPERS = re.compile(r'irepa_jax/models/fused(_tpu)?\.py')
OURS = re.compile(r'(?:^|.*/)(irepa_jax/.*)')


class Item(NamedTuple):
  """One operation of a program, or several from one line of code."""

  kind: str  # of the compiler: fusion, copy ...
  path: str  # of JAX: jit(step)/transpose(jvp())/while/body/Block/dot_general
  source: str  # irepa_jax/models/layers.py:62; '' where it is not ours
  cycles: int  # of all its trips
  trips: int


def items(text):
  """Returns the operations of a compiled program that have an estimate."""
  found, frames = [], _frames(text)
  for line, trips in _executed(text):
    cycles = CYCLES.search(line)
    if cycles:
      path = PATH.search(line)
      found.append(
          Item(
              OPERATION.match(line)[2],
              path[1] if path else '',
              _source(line, frames),
              int(cycles[1]) * trips,
              trips,
          )
      )
  return found


def unknown(text):
  """Counts the calls, by name, of kernels that have no estimate."""
  found = collections.Counter()
  for line, trips in _executed(text):
    target = TARGET.search(line)
    if target and not CYCLES.search(line) and target[1] not in FREE:
      found[target[1]] += trips
  return dict(sorted(found.items()))


def largest(found, count=10):
  """Sums items from one line of code and in one direction; the largest first."""
  sums = collections.defaultdict(list)
  for item in found:
    sums[item.source, direction(item.path), _last(item.path)].append(item)
  total = sum(item.cycles for item in found) or 1
  rows = [
      {
          'share': round(sum(item.cycles for item in group) / total, 4),
          'cycles': sum(item.cycles for item in group),
          'runs': sum(item.trips for item in group),
          'what': f'{last} {way}'.strip(),
          'line': source,
      }
      for (source, way, last), group in sums.items()
  ]
  return sorted(rows, key=lambda row: -row['cycles'])[:count]


def direction(path):
  """Returns what a JAX path belongs to: forward, again (remat) or backward."""
  if 'rematted_computation' in path:
    return 'again'
  return 'backward' if 'transpose(' in path else 'forward'


def _last(path):
  """Returns the end of a JAX path: an operation, and the modules it is in."""
  names = [n for n in path.split('/') if '(' not in n and n not in FRAMES]
  return '/'.join(names[-3:])


def _executed(text):
  """Yields (line, trips) of what runs, loops by their trips.

  Of a choice the branch with the most cycles counts.
  """
  bodies, entry = _computations(text)
  todo = [(entry, 1)]
  while todo:
    name, trips = todo.pop()
    for line in bodies.get(name, ()):
      yield line, trips
      todo.extend((n, trips * k) for n, k in _called(line, bodies))


def _called(line, bodies):
  """Returns [(computation, trips)] that an operation runs besides itself."""
  kind = OPERATION.match(line)
  kind = kind and kind[2]
  if kind == 'while':
    condition, body = LOOP.search(line).groups()
    return [(body, _trips(line, bodies.get(condition, ())))]
  if kind == 'conditional':
    names = re.findall(r'[\w.-]+', BRANCHES.search(line)[1])
    return [(max(names, key=lambda n: _weight(n, bodies)), 1)]
  if kind in ('call', 'async-start'):
    return [(name, 1) for name in CALLS.findall(line)]
  return []


def _weight(name, bodies):
  lines = bodies.get(name, ())
  return sum(int(n) for line in lines for n in CYCLES.findall(line))


def _trips(line, condition):
  """Returns how often a loop runs; 1 where that is not written down."""
  if known := TRIPS.search(line):
    return int(known[1])
  constants = dict(
      match.groups() for match in map(CONSTANT.search, condition) if match
  )
  for operation in condition:
    if compared := COMPARED.search(operation):
      names = re.findall(r'%?([\w.-]+)', compared[1])
      limit = [int(constants[name]) for name in names if name in constants]
      return limit[0] + (compared[2] == 'LE') if limit else 1
  return 1


def _computations(text):
  """Returns ({name: lines}, name of the entry)."""
  bodies, entry, lines = {}, '', []
  for line in text.splitlines():
    if header := COMPUTATION.match(line):
      lines = bodies[header[1]] = []
      entry = header[1] if line.startswith('ENTRY') else entry
    else:
      lines.append(line)
  return bodies, entry


def _frames(text):
  """Returns {frame: (file:line, its caller)} of the tables of a program."""
  tables, lines = collections.defaultdict(dict), {}
  for line in text[: text.find('\n%') + 1].splitlines():
    if line in ('FileNames', 'FileLocations', 'StackFrames'):
      lines = tables[line]
    elif row := re.match(r'(\d+) (.*)', line):
      lines[row[1]] = row[2]
    elif line:
      lines = {}
  number = lambda key, row: re.search(rf'{key}=(\d+)', row)[1]
  files = {k: v.strip('"') for k, v in tables['FileNames'].items()}
  places = {
      k: f'{files[number("file_name_id", v)]}:{number("line", v)}'
      for k, v in tables['FileLocations'].items()
  }
  callers = {
      k: int(number('parent_frame_id', v))
      for k, v in tables['StackFrames'].items()
  }
  root = min(callers.values(), default=0)  # 0 or 1: some compilers add one
  return {
      k: (places[number('file_location_id', v)], str(callers[k] - root))
      for k, v in tables['StackFrames'].items()
  }


def _source(line, frames):
  """Returns the innermost line of this package that an operation is from."""
  if place := PLACE.search(line):
    ours = OURS.match(f'{place[1]}:{place[2]}')
    return ours[1] if ours else ''
  frame = FRAME.search(line)
  frame, found = frame and frame[1], ''
  while frame in frames:
    place, frame = frames[frame]
    if ours := OURS.match(place):
      found = ours[1]
      if not WRAPPERS.match(found):
        break
  return found
