"""Agreement between the processes of one job.

With one process nothing is communicated. With several, every process has to
call these functions in the same order, as with any collective. They talk over
the line that start.join has opened; where JAX was started in another way, by
its collectives.
"""

import collections
import hashlib
import importlib.metadata
import json
import pathlib
import socket

import jax
from jax.experimental import multihost_utils
import numpy as np

from irepa_jax import errors
from irepa_jax.distributed import peers

SHOWN = 3  # differences named in one line
BY_STATUS = {
    kind.exit_status: kind
    for kind in (errors.UsageError, errors.DataError, errors.CheckpointError)
}


def is_first():
  """Whether this process writes the files that one process writes."""
  return jax.process_index() == 0


def worst(code):
  """Returns the largest of the processes' small integers."""
  return max(map(int, gather(str(int(code)))))


def from_first(values, size):
  """Returns the first `size` integers of process 0 to every process."""
  mine = list(map(int, values))[:size] if is_first() else []
  return json.loads(gather(json.dumps(mine))[0])


def text_from_first(text):
  """Returns the text of process 0 to every process."""
  return gather(text)[0]


def gather(text):
  """Returns the texts of all processes, in order; also a place to meet."""
  if jax.process_count() == 1:
    return [text]
  # Names that are not UTF-8 travel as well.
  found = _all_gather(text.encode(errors='surrogateescape'))
  return [data.decode(errors='surrogateescape') for data in found]


def on_first(action):
  """Runs action() on process 0; if it raises, every process raises the same.

  Only ValueError and OSError travel: the errors of files and of their users.
  """
  error = None
  if is_first():
    try:
      action()
    except (ValueError, OSError) as raised:
      error = raised
  if jax.process_count() == 1:
    if error:
      raise error
    return
  text = f'{getattr(error, "exit_status", 4)}{error}' if error else ''
  if message := gather(text)[0]:
    raise error or _copy(message)


def _copy(message):
  """Returns the error of process 0 as this process raises it."""
  return BY_STATUS[int(message[0])](message[1:])


def agree(values):
  """Checks that all processes were started with the same values and software.

  Args:
    values: names -> anything that JSON can hold, also nested, such as
      {'config': {...}, 'data': checksum of the manifest}. Versions of JAX and
      a checksum of this package's source are added.

  Raises:
    UsageError: on every process, saying which one differs, and in what.
  """
  if jax.process_count() == 1:
    return
  flat = dict(_flat({**values, 'software': software()}))
  text = json.dumps(flat, sort_keys=True).encode()
  digests = _all_gather(hashlib.sha256(text).digest())
  if len(set(digests)) == 1:
    return
  texts = _all_gather(json.dumps([socket.gethostname(), flat]).encode())
  hosts, settings = zip(*map(json.loads, texts), strict=True)
  raise errors.UsageError(_difference(hosts, settings))


def _difference(hosts, settings):
  """Says in one line which processes are not as most of them are."""
  parts = []
  for name in sorted(set().union(*settings)):
    seen = [each.get(name, 'not set') for each in settings]
    # Equal counts come in order of appearance: process 0 is right.
    usual = collections.Counter(seen).most_common(1)[0][0]
    parts += [
        f'{name} is {_short(value)} on process {i} ({hosts[i]}),'
        f' {_short(usual)} on process {seen.index(usual)}'
        for i, value in enumerate(seen)
        if value != usual
    ]
  more = f'; and {len(parts) - SHOWN} more' if len(parts) > SHOWN else ''
  return (
      f'the processes differ: {"; ".join(parts[:SHOWN])}{more}. Start the same'
      ' command from the same code on every host'
  )


def _short(text):
  return text if len(text) <= 80 else f'{text[:80]}...'


def _flat(value, name=''):
  """Yields ('config.seed', '0') for each leaf of nested mappings."""
  if isinstance(value, dict):
    for key in value:
      yield from _flat(value[key], f'{name}.{key}' if name else str(key))
  else:
    yield name, json.dumps(value)


def software():
  """Returns versions, and a checksum of the source of this package."""
  root = pathlib.Path(__file__).parents[1]
  source = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    source.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes())
  return {
      'irepa_jax': source.hexdigest()[:16],
      'jax': jax.__version__,
      'jaxlib': importlib.metadata.version('jaxlib'),
  }


def _all_gather(data):
  """Returns the bytes of every process, which may differ in length."""
  if line := peers.line():
    return line.gather(data)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.frombuffer(data.ljust(int(sizes.max()), b'\0'), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [bytes(row[:n]) for row, n in zip(rows, sizes, strict=True)]
