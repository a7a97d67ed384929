"""The collectives of a compiled program, and which leave a group of devices.

A program says for every collective which devices take part, by their position
in the mesh: `replica_groups={{0,1},{2,3}}`; or as a range that is reshaped and
transposed, `[2,2]<=[2,2]T(1,0)`; or by axes, `mesh['a'=2,'b'=2] {'b'}`. The
compiler of several TPU slices splits a collective instead into one within each
slice and transfers between the hosts of the slices, which name what they are
part of.
"""

import collections
import re

import numpy as np

KINDS = (
    'all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|'
    'collective-broadcast|collective-permute'
)
OPERATION = re.compile(rf'= (\(?[^=]*?) ({KINDS})(?:-start)?\(')
TRANSFER = re.compile(
    r'= \((\w+\[[\d,]*\])[^=]* send\(.*_xla_megascale_transfer_type="(\w+)"'
)
ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
BITS = re.compile(r'\d+')
LISTED = re.compile(r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}')
RANGE = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
RANGED = re.compile(rf'replica_groups=\[([\d,]+)\]<={RANGE}')
MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    rf"(?:, device_ids=\((?:{RANGE}|(?P<ids>[\d,]+))\))? "
    r"\{(?P<along>[^}]*)\}"
)
AXIS = re.compile(r"'(\w+)'=(\d+)")
PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")  # of an axis: (before)size
MIB = 2**20


def counted(text):
  """Counts the collectives of a program as {'all-gather bf16': n}."""
  found = collections.Counter(
      f'{kind} {ARRAY.search(shapes)[1]}'
      for shapes, kind in OPERATION.findall(text)
  )
  return dict(sorted(found.items()))


def crossing(text, groups):
  """Sums up the collectives of a program between groups of devices.

  Args:
    text: of the compiled program.
    groups: group of each device, in the order of the mesh.

  Returns:
    {'all-reduce f32': {'count': n, 'mib': m}} with the MiB that a device
    has after them. What stands in a loop is counted once.
  """
  found = collections.defaultdict(lambda: {'count': 0, 'mib': 0.0})
  for shapes, kind in _between(text, np.asarray(groups)):
    arrays = [(dtype, _bytes(dtype, dims)) for dtype, dims in shapes]
    entry = found[f'{kind} {max(arrays, key=lambda a: a[1])[0]}']
    entry['count'] += 1
    entry['mib'] += sum(size for _, size in arrays) / MIB
  return {
      name: entry | {'mib': round(entry['mib'], 3)}
      for name, entry in sorted(found.items())
  }


def _between(text, groups):
  """Yields ([(dtype, dimensions)], kind) of what leaves a group."""
  for line in text.splitlines():
    if transfer := TRANSFER.search(line):
      shape, kind = transfer.groups()
      yield ARRAY.findall(shape), kind.lower().replace('_', '-')
    elif (operation := OPERATION.search(line)) and _leaves(line, groups):
      yield ARRAY.findall(operation[1]), operation[2]


def _leaves(line, groups):
  """Whether devices of different groups take part in one collective."""
  return any(len(set(groups[part])) > 1 for part in _parts(line, len(groups)))


def _parts(line, count):
  """Returns the positions in the mesh that take part together."""
  if ranged := RANGED.search(line):
    return _range(*ranged.groups()[1:]).reshape(_numbers(ranged[1]))
  if mesh := MESH.search(line):
    return _along(mesh, count)
  if listed := LISTED.search(line):
    return [_numbers(part) for part in re.findall(r'\{([\d,]*)\}', listed[1])]
  return [list(range(count))]  # nothing said: all of them


def _range(shape, order):
  """Returns 0, 1, ... as an array of a shape with its axes in another order."""
  shape = _numbers(shape)
  ids = np.arange(np.prod(shape)).reshape(shape)
  return ids.transpose(_numbers(order or '') or range(len(shape)))


def _along(mesh, count):
  """Returns the positions that differ only along some axes of a mesh."""
  shape, order = mesh.groups()[1:3]
  ids = _range(shape, order) if shape else np.arange(count)
  ids = np.array(_numbers(mesh['ids'])) if mesh['ids'] else ids
  parts = {k: (b, n) for k, b, n in PART.findall(mesh['along'])}
  sizes, along = [], []
  for name, size in AXIS.findall(mesh['axes']):
    if name not in parts:
      sizes.append(int(size))
      continue
    before, length = (int(n or 0) for n in parts[name])
    before, length = before or 1, length or int(size)
    along.append(len(sizes) + 1)
    sizes += [before, length, int(size) // before // length]
  last = range(-len(along), 0)
  moved = np.moveaxis(ids.reshape(sizes), along, last)
  return moved.reshape(-1, int(np.prod(moved.shape[-len(along) :])))


def _numbers(text):
  return [int(number) for number in text.split(',') if number]


def _bytes(dtype, dimensions):
  width = BITS.search(dtype)
  bits = int(width.group()) if width else 8  # pred
  return int(np.prod(_numbers(dimensions), dtype=np.int64)) * bits // 8
