"""Starts JAX in a job of several processes.

`join` comes first in a program, before anything asks JAX for a device. Where
this process is the only one it waits for nobody, so the same command runs on a
laptop, on one TPU VM and on every host of a pod.
"""

import hashlib
import os
import pathlib
import platform
import socket

from absl import logging
import jax

from irepa_jax import errors
from irepa_jax.distributed import cluster
from irepa_jax.distributed import peers
from irepa_jax.distributed import rendezvous
from irepa_jax.names import places

START_TIMEOUT_S = 300
HEARTBEAT_TIMEOUT_S = 100
CONNECT_TIMEOUT_S = 120  # for jax.distributed itself, once all are there


def join(
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
  job = cluster.find(coordinator, num_processes, process_id)
  if job is None:
    _keep_programs()
  else:
    _join(job, initialization_timeout, heartbeat_timeout)
  _check_platform()


def _join(job, initialization_timeout, heartbeat_timeout):
  timeout = _seconds(
      initialization_timeout, 'IREPA_START_TIMEOUT', START_TIMEOUT_S
  )
  peers.open_(job.index, rendezvous.meet(job, timeout=timeout))
  jax.distributed.initialize(
      job.coordinator,
      job.count,
      job.index,
      local_device_ids=job.local_devices,
      cluster_detection_method='deactivate',
      initialization_timeout=CONNECT_TIMEOUT_S,
      heartbeat_timeout_seconds=_seconds(
          heartbeat_timeout, 'IREPA_HEARTBEAT_TIMEOUT', HEARTBEAT_TIMEOUT_S
      ),
  )
  logging.info(
      'process %d of %d on %s, by %s',
      job.index,
      job.count,
      socket.gethostname(),
      job.source,
  )


def _check_platform():
  """Raises UsageError where JAX_PLATFORMS names what is not there."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    if not (platforms := jax.config.jax_platforms):
      raise
    reason = str(error).strip().split('\n')[0] or 'no such device or plugin'
    raise errors.UsageError(
        f'JAX_PLATFORMS is {platforms!r}: {reason}; leave it away to take what'
        ' is there, or cpu'
    ) from error


def _keep_programs():
  """Keeps compiled programs in the cache folder of the user.

  JAX_COMPILATION_CACHE_DIR says where else; several processes need that, a
  folder that all of them see: only process 0 writes, and on GPUs a process
  that compiles waits for the measurements of one that found its program.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  if (cache := places.cache()) is not None:
    folder = cache / f'xla-{_processor()}'
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
