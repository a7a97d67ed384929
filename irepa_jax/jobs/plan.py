"""What a run needs before it is launched: memory, collectives, FLOPs, time.

With a topology the whole training step is compiled for a TPU slice or GPUs that
are not there, by the real compiler; for a TPU it also says how long it expects
the step to take (jobs/stopwatch.py).
"""

import os
import pathlib
import re
import sys
import time
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from irepa_jax import build
from irepa_jax import errors
from irepa_jax.distributed import collectives
from irepa_jax.distributed import sharding
from irepa_jax.jobs import setup
from irepa_jax.jobs import stopwatch
from irepa_jax.runs import chips

# Accelerator types that the compiler wants to read from its environment.
TYPES = {
    'v4': 'v4', 'v5e': 'v5litepod', 'v5p': 'v5p', 'v6e': 'v6e',
    'tpu7x': 'tpu7x',
}  # fmt: skip


# GPUs as the compiler describes them, one file each.
TARGETS = pathlib.Path(__file__).parent / 'targets'


# Without a GPU, kernels that have to be tried out cannot be chosen: matrix
# products are left to cuBLAS.
GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}
GIB = 2**30
LESS = '--config.remat=full, --config.fsdp=true, --config.accumulate=2'
DAY = 24 * 60 * 60  # seconds


def plan(config, slice_name='', slices=1, price=0.0):
  """Returns what a run needs, as a dict.

  slice_name: of `topology`, and `slices` of it; without, the devices at hand
    are counted on.
  price: of one chip for an hour; 0 leaves the cost out.
  """
  devices = topology(slice_name, slices) if slice_name else jax.devices()
  mesh = setup.make_mesh(config, devices)
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  built = build.experiment(config, mesh)
  shapes = setup.abstract(built, config, mesh)
  report = {'device': devices[0].device_kind, 'mesh': dict(mesh.shape)}
  report |= sizes(shapes)
  _say(f'{config.model} on {len(devices)} x {devices[0].device_kind}')
  flops = setup.train_flops(built, config)
  report['train_gflop_per_image'] = round(flops / 1e9, 1)
  if slice_name:
    _say('compiling the training step: seconds for small models, minutes for XL')
    figures, text = compiled(built, config, mesh, shapes)
    report |= figures
    report['estimate'] = estimate(text, config, flops, mesh, price)
  chip = chips.find(devices[0])
  return report | verdict(report, chip and chip.memory or None)


def verdict(report, available):
  """Says whether it fits. available: GiB of a device, None where unknown.

  Without a compiled step only the state is known, which is a lower bound.
  """
  if 'temporaries_gib' in report:
    needed = report['arguments_gib'] + report['temporaries_gib']
    what = 'arguments and temporaries of the compiled step'
  else:
    names = ('state_gib_per_device', 'encoders_gib_per_device')
    needed = sum(report[name] for name in names)
    what = 'weights and optimiser alone; --topology counts all of the step'
  told = {'needed_gib': round(needed, 2), 'needed_for': what}
  if available is None:
    return told | {'fits': 'unknown: memory of the device is not known'}
  told |= {'available_gib': available}
  if needed > available:
    return told | {'fits': f'no: less memory by {LESS}'}
  return told | {'fits': 'yes' if 'temporaries_gib' in report else 'perhaps'}


def _say(text):
  """Tells on standard error what takes its time; the JSON stays alone."""
  print(text, file=sys.stderr, flush=True)


def estimate(text, config, flops, mesh, price=0.0):
  """Returns the compiler's estimate of a step, and what follows from it.

  Args:
    text: of the compiled program.
    config: of the run.
    flops: of a training step for one image.
    mesh: the program runs on.
    price: of one chip for an hour.

  Returns:
    None where the compiler counts no cycles, as for GPUs; 'unknown' counts the
    calls of kernels that it has no estimate of, which are not in the time.
  """
  chip, found = chips.find(mesh.devices.flat[0]), stopwatch.items(text)
  if not (chip and chip.clock and found):
    return None
  step = sum(item.cycles for item in found) / chip.clock
  useful = config.batch_size * flops / mesh.size / chip.peak
  figures = {
      'step_ms': round(1e3 * step, 2),
      'img_per_s': round(config.batch_size / step, 1),
      'mfu': round(useful / step, 3),
      'days': round(config.steps * step / DAY, 2),
      'unknown': stopwatch.unknown(text),
      'largest': stopwatch.largest(found),
  }
  if price:
    hours = config.steps * step / 3600
    figures['cost'] = round(hours * mesh.size * price, 2)
  return figures


def topology(name, slices=1):
  """Returns the devices of TPU slices, or nodes of GPUs, that are not there."""
  kind, _, bounds = name.partition(':')
  target = TARGETS / f'{kind}.txtpb'
  gpus = sorted(path.stem for path in TARGETS.glob('*.txtpb'))
  if kind in gpus and re.fullmatch(r'(\d+)?', bounds):
    return _found(
        name,
        'cuda',
        'jax[cuda12]',
        topology=f'{slices}x1x{bounds or 1}',
        target_config=target.read_text(),
    )
  if kind not in TYPES or not re.fullmatch(r'\d+(x\d+)+', bounds):
    raise errors.UsageError(
        f'topology {name!r}; it must be like v5e:2x4, with {", ".join(TYPES)};'
        f' or like h200:8, with {", ".join(gpus)}'
    )
  chips = int(np.prod([int(n) for n in bounds.split('x')]))
  # Nothing is run, so that another program may hold this machine's own TPU.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ |= {
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_ACCELERATOR_TYPE': f'{TYPES[kind]}-{chips}',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      # Beside a program that holds the chips of this machine, if it has any.
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
  single = {'chips_per_host_bounds': [1, 1, 1]} if chips == 1 else {}
  return _found(name, 'tpu', 'libtpu', num_slices=slices, **single)


def _found(name, platform, package, **options):
  """Asks the compiler of a platform for the devices of a topology."""
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc(name, platform, **options)
  except (NotImplementedError, RuntimeError) as error:
    raise errors.UsageError(
        f'no compiler for {name}: {str(error).splitlines()[0]} (pip install'
        f' {package})'
    ) from error
  return list(found.devices)


def sizes(shapes):
  """Counts parameters, and bytes of the state on one device."""
  state, batch, frozen, _ = shapes
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  return {
      'parameters': {k: count(v) for k, v in state.params.items()},
      'encoder_parameters': [count(params) for params in frozen],
      'state_gib_per_device': gib(state),
      'encoders_gib_per_device': gib(frozen),
      'batch_mib_per_device': round(1024 * gib(batch), 2),
  }


class Statistics(NamedTuple):
  """Stands in for the manifest of a data set."""

  bias: tuple[float, ...]
  scale: tuple[float, ...]


def gib(tree):
  """Bytes of one device's shards of a tree, in GiB."""
  shard = lambda x: np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return round(float(sum(map(shard, jax.tree.leaves(tree)))) / GIB, 3)


def compiled(built, config, mesh, shapes):
  """Compiles the training step; returns its figures and its text."""
  ones = (1.0,) * built.model.channels
  step = setup.jit_step(built, config, mesh, Statistics(ones, ones))
  start = time.time()
  try:
    platform = mesh.devices.flat[0].platform
    options = GPU_OPTIONS if platform in ('cuda', 'gpu') else None
    program = step.lower(*shapes).compile(options)
  except Exception as error:  # the compiler's own errors have no public type
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    line = re.search(r'[^\n]*xceed[^\n]*', str(error))
    raise errors.UsageError(
        f'does not fit: {(line or re.search(".*", str(error))).group(0)}; less'
        ' memory: --config.remat=full, --config.fsdp=true,'
        ' --config.accumulate=2'
    ) from error
  memory, text = program.memory_analysis(), _text(program)
  needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  groups = [sharding.group(device) for device in mesh.devices.flat]
  figures = {
      'compile_s': round(time.time() - start),
      'arguments_gib': round(memory.argument_size_in_bytes / GIB, 2),
      'temporaries_gib': round(memory.temp_size_in_bytes / GIB, 2),
      'bytes_per_device': needed,
      'collectives': collectives.counted(text),
      'between_slices': collectives.crossing(text, groups),
  }
  return figures, text


def _text(program):
  """Returns the text of a compiled program; '' where JAX cannot read it.

  XLA does not parse what some compilers of TPU v6e write; memory is known all
  the same.
  """
  try:
    return program.as_text()
  except jax.errors.JaxRuntimeError as error:
    logging.warning('no count of collectives: %s', str(error).split('\n')[0])
    return ''
