"""Which processes make up this job, read from what started them.

Nothing here talks to JAX. A process belongs to a job of several only on
evidence: IREPA_* variables or arguments, a SLURM step or an Open MPI run of
more than one task, a TPU slice of more than one host, or several slices. A TPU
VM of one host, a SLURM job of one task and a plain shell are one process.
"""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple
import urllib.error
import urllib.request

from absl import logging

from irepa_jax import errors

TPU_PORT = 8482  # as jax.distributed uses on TPUs
FIRST_PORT, PORTS = 61440, 4096  # above Linux's ephemeral ports
METADATA = 'computeMetadata/v1/instance/attributes'


class Processes(NamedTuple):
  """This process among the processes of a job."""

  source: str  # what said so, for messages
  coordinator: str | None  # 'host:port' of process 0
  count: int | None
  index: int | None
  local_devices: tuple[int, ...] | None = None  # None: all that are visible


def find(coordinator=None, count=None, index=None, environ=None):
  """Returns the Processes of this job, or None where this is the only one.

  Args:
    coordinator: 'host:port' of process 0.
    count: of the processes.
    index: of this process, 0 to count - 1. What is None is taken from
      IREPA_COORDINATOR, IREPA_NUM_PROCESSES and IREPA_PROCESS_ID, and then
      from the cluster.
    environ: in place of os.environ.

  Raises:
    UsageError: for values that contradict each other or are incomplete.
  """
  environ = os.environ if environ is None else environ
  coordinator = coordinator or environ.get('IREPA_COORDINATOR')
  count = _number(environ, 'IREPA_NUM_PROCESSES') if count is None else count
  index = _number(environ, 'IREPA_PROCESS_ID') if index is None else index
  given = Processes('flags or IREPA_* variables', coordinator, count, index)
  if count == 1:
    return None
  if None not in given[1:4]:
    return _checked(given)
  found = _slurm(environ) or _mpi(environ) or _tpu(environ)
  if given[1:4] == (None, None, None):
    return found and _checked(found)
  return _checked(_filled(given, found) if found else given)


def _filled(given, found):
  """Returns what the cluster says where nothing else was said."""
  pairs = zip(given, found, strict=True)
  both = Processes(*(there if here is None else here for here, there in pairs))
  return both._replace(source=found.source)


def _checked(processes):
  """Returns `processes` if it is complete and consistent."""
  source, coordinator, count, index, _ = processes
  for name, value in (
      ('IREPA_COORDINATOR (host:port)', coordinator),
      ('IREPA_NUM_PROCESSES', count),
      ('IREPA_PROCESS_ID', index),
  ):
    if value is None:
      raise errors.UsageError(
          f'several processes were asked for by {source}, but {name} is not'
          ' known; set it'
      )
  host = re.fullmatch(r'[^\s/]+:(\d{1,5})', coordinator)
  if not host or not 0 < int(host[1]) < 2**16:
    raise errors.UsageError(
        f'the coordinator is {coordinator!r}; it must be host:port, the port'
        ' from 1 to 65535'
    )
  if count < 1 or not 0 <= index < count:
    raise errors.UsageError(
        f'process id {index} of {count} processes; ids go from 0 to'
        f' {max(count, 1) - 1}'
    )
  return processes


def _slurm(environ):
  """Returns the tasks of an srun step, if they are several."""
  names = 'SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS'
  tasks = next((_number(environ, n) for n in names if environ.get(n)), 1)
  if tasks < 2:
    return None
  if 'SLURM_STEP_NODELIST' not in environ or 'SLURM_PROCID' not in environ:
    logging.warning(
        'the SLURM job has %d tasks, but this process was not started by srun:'
        ' it runs alone',
        tasks,
    )
    return None
  # The first node of 'a1,a2' or 'a[1-4,7]-ib,b2'.
  nodes = environ['SLURM_STEP_NODELIST']
  node = re.match(r'(?:[^\[,]|\[[^\]]*\])+', nodes).group()
  node = re.sub(r'\[(\w+)[^\]]*\]', r'\1', node)
  here = _repeated(environ.get('SLURM_STEP_TASKS_PER_NODE', '1'))
  place = _number(environ, 'SLURM_NODEID', 0)
  if place >= len(here):
    raise errors.UsageError(
        f'SLURM_NODEID is {place}, but SLURM_STEP_TASKS_PER_NODE names'
        f' {len(here)} nodes'
    )
  return Processes(
      'SLURM',
      f'{node}:{_port(environ, _known(environ, "SLURM_JOB_ID"))}',
      tasks,
      _known(environ, 'SLURM_PROCID'),
      _share(environ, _number(environ, 'SLURM_LOCALID', 0), here[place]),
  )


def _mpi(environ):
  """Returns the ranks of an Open MPI run, if they are several."""
  size = _number(environ, 'OMPI_COMM_WORLD_SIZE', 1)
  if size < 2:
    return None
  here = _number(environ, 'OMPI_COMM_WORLD_LOCAL_SIZE', size)
  # Open MPI 4: '1531576320.0;tcp://10.0.0.1,10.1.0.1:34911'. Version 5 does
  # not say where rank 0 runs.
  address = re.match(
      r'(\d+)\.\d+;tcp://([^,:]+)', environ.get('OMPI_MCA_orte_hnp_uri', '')
  )
  number = int(address.group(1)) >> 12 if address else os.getppid()
  host = address.group(2) if address else None
  host = '127.0.0.1' if here == size else host
  return Processes(
      'Open MPI',
      host and f'{host}:{_port(environ, number)}',
      size,
      _known(environ, 'OMPI_COMM_WORLD_RANK'),
      _share(environ, _known(environ, 'OMPI_COMM_WORLD_LOCAL_RANK'), here),
  )


def _tpu(environ):
  """Returns the hosts of a TPU slice or of several, if they are several."""
  platforms = environ.get('JAX_PLATFORMS', '')
  if (platforms and 'tpu' not in platforms) or not _has_libtpu():
    return None
  names = (
      _addresses_of_file(environ)
      or environ.get('TPU_PROCESS_ADDRESSES')
      or environ.get('TPU_WORKER_HOSTNAMES')
  )
  if names:  # GKE
    hosts = [name.split(':')[0] for name in names.split(',')]
    worker, slices = _number(environ, 'TPU_WORKER_ID'), environ
  elif 'TPU_SKIP_MDS_QUERY' not in environ:  # JAX sets it without TPU chips
    ends = _metadata(environ, 'worker-network-endpoints')
    # 'host,host' or 'name:id:address,name:id:address'
    hosts = [end.split(':')[-1] for end in ends.split(',')] if ends else []
    worker = _metadata(environ, 'agent-worker-number') if ends else None
    slices = _tpu_environment(environ) if ends else {}
  else:
    return None
  if not hosts:
    return None
  if environ.get('TPU_PROCESS_BOUNDS') == '1,1,1':  # one host, on purpose
    hosts, worker = hosts[:1], '0'
  count = len(hosts) * (_number(slices, 'MEGASCALE_NUM_SLICES') or 1)
  if count < 2:
    return None
  first = slices.get('MEGASCALE_COORDINATOR_ADDRESS') or hosts[0]
  index = (_number(slices, 'MEGASCALE_SLICE_ID') or 0) * len(hosts)
  port = environ.get('JAX_COORDINATOR_PORT', TPU_PORT)
  return Processes(
      'the TPU slice',
      f'{first.split(":")[0]}:{port}',
      count,
      None if worker is None else index + int(worker),
  )


def _addresses_of_file(environ):
  """Returns what the file of TPU_PROCESS_ADDRESSES_PATH says, if it is set."""
  if not (path := environ.get('TPU_PROCESS_ADDRESSES_PATH')):
    return None
  try:
    text = pathlib.Path(path).read_text().strip()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UsageError(
        f'TPU_PROCESS_ADDRESSES_PATH is {path!r}: {error}'
    ) from error
  if not text:
    raise errors.UsageError(f'TPU_PROCESS_ADDRESSES_PATH: {path} is empty')
  return text


def _has_libtpu():
  return importlib.util.find_spec('libtpu') is not None


def _metadata(environ, key):
  """Asks a Google Cloud VM about itself; None anywhere else."""
  host = environ.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
      f'http://{host}/{METADATA}/{key}', headers={'Metadata-Flavor': 'Google'}
  )
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  for _ in range(3):
    try:
      with opener.open(request, timeout=5) as answer:
        return answer.read().decode()
    except urllib.error.HTTPError:
      return None
    except OSError:
      continue
  return None


def _tpu_environment(environ):
  """Returns what the metadata of a TPU VM says about several slices."""
  text = _metadata(environ, 'tpu-env') or ''
  pairs = re.findall(r"(?m)^\s*(\w+)\s*:\s*'?(.*?)'?\s*$", text)
  return {**dict(pairs), **environ}


def _number(environ, name, default=None):
  text = environ.get(name)
  if text and not text.isdecimal():
    raise errors.UsageError(f'{name} is {text!r}; it must be a number')
  return int(text) if text else default


def _known(environ, name):
  """Returns a number that what started the processes always sets."""
  number = _number(environ, name)
  if number is None:
    raise errors.UsageError(
        f'{name} is not set, though others of its kind are; set'
        ' IREPA_NUM_PROCESSES=1 to run alone'
    )
  return number


def _port(environ, job):
  """A port that the processes of a job agree on and that jobs rarely share."""
  return environ.get('JAX_COORDINATOR_PORT', FIRST_PORT + job % PORTS)


def _share(environ, index, count):
  """Returns the GPUs of one of `count` processes on a machine, by position.

  None is all that the process sees: it is alone there, or the launcher has
  already given it its own (srun --gpus-per-task), or the user has.
  """
  if count == 1 or 'JAX_LOCAL_DEVICE_IDS' in environ:
    return None
  visible = environ.get('CUDA_VISIBLE_DEVICES')
  total = len(visible.split(',')) if visible else count
  if total < count or str(total) == environ.get('SLURM_GPUS_PER_TASK'):
    return None
  each = total // count
  return tuple(range(index * each, (index + 1) * each))


def _repeated(text):
  """Returns '2(x3),1' as [2, 2, 2, 1]."""
  numbers = []
  for number, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
    numbers += [int(number)] * int(times or 1)
  return numbers
