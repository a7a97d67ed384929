"""Starts JAX in a job of several processes, and compares what they run.

`start` comes first in a program, before anything asks JAX for a device. Where
this process is the only one it waits for nobody, so the same command runs on a
laptop, on one TPU VM and on every host of a pod.
"""

import collections
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from irepa_jax import cluster
from irepa_jax import errors
from irepa_jax import rendezvous

START_TIMEOUT_S = 300
HEARTBEAT_TIMEOUT_S = 100
CONNECT_TIMEOUT_S = 120  # for jax.distributed itself, once all are there
SHOWN = 3  # differences named in one line


def start(
    coordinator=None,
    num_processes=None,
    process_id=None,
    *,
    initialization_timeout=None,
    heartbeat_timeout=None,
):
  """Joins the other processes of this job, if there are any.

  A process alone also keeps its compiled programs (see _keep_programs).

  Args:
    coordinator: 'host:port' of process 0; see cluster.find for what the
      first three are when they are not given.
    num_processes: of the job.
    process_id: of this process, from 0.
    initialization_timeout: seconds to wait for the others; default
      IREPA_START_TIMEOUT or 300.
    heartbeat_timeout: seconds after which a silent process counts as dead and
      the others end; default IREPA_HEARTBEAT_TIMEOUT or 100.

  Raises:
    UsageError: where the processes are not said clearly or do not all come.
  """
  if jax.distributed.is_initialized():
    return
  processes = cluster.find(coordinator, num_processes, process_id)
  if processes is None:
    _keep_programs()
    return
  rendezvous.meet(
      processes,
      timeout=_seconds(
          initialization_timeout, 'IREPA_START_TIMEOUT', START_TIMEOUT_S
      ),
  )
  jax.distributed.initialize(
      processes.coordinator,
      processes.count,
      processes.index,
      local_device_ids=processes.local_devices,
      cluster_detection_method='deactivate',
      initialization_timeout=CONNECT_TIMEOUT_S,
      heartbeat_timeout_seconds=_seconds(
          heartbeat_timeout, 'IREPA_HEARTBEAT_TIMEOUT', HEARTBEAT_TIMEOUT_S
      ),
  )
  logging.info(
      'process %d of %d on %s, by %s',
      processes.index,
      processes.count,
      socket.gethostname(),
      processes.source,
  )


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
  root = pathlib.Path(__file__).parent
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
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.frombuffer(data.ljust(int(sizes.max()), b'\0'), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [bytes(row[:n]) for row, n in zip(rows, sizes, strict=True)]


def _keep_programs():
  """Keeps compiled programs in the cache folder of the user.

  JAX_COMPILATION_CACHE_DIR says where else; several processes need that, a
  folder that all of them see: only process 0 writes, and on GPUs a process
  that compiles waits for the measurements of one that found its program.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = pathlib.Path(cache, 'irepa_jax', f'xla-{_processor()}')
  jax.config.update('jax_compilation_cache_dir', str(folder))


def _processor():
  """Tells processors apart: a program for one may not run on another."""
  text = platform.platform()
  if (path := pathlib.Path('/proc/cpuinfo')).exists():
    lines = path.read_text(errors='replace').splitlines()
    text = next((s for s in lines if s.startswith(('flags', 'Features'))), text)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _seconds(value, variable, default):
  """Returns the argument, or the environment variable, or the default."""
  if value is not None:
    return value
  text = os.environ.get(variable)
  if text is not None and not (text.isdecimal() and int(text)):
    raise errors.UsageError(f'{variable} is {text!r}; it must be seconds, >= 1')
  return default if text is None else int(text)
