"""Times samplers: images per second of the network, with and without guidance.

  python -m irepa_jax.tools.benchmarks.sampling --config=configs/sit_b.py \
      --config.guidance=1.8 --config.guidance_high=0.7
  python -m irepa_jax.tools.benchmarks.sampling --config=configs/sit_b.py \
      --batch_size=4 --against=torch

Weights and noise are random. A few steps of config.sampler are timed, spread
over all of t, as the time of one step does not depend on their number; img/s is
that of config.sample_steps steps, without the autoencoder. With --against=torch
Euler's method alternates with that of the same network in PyTorch under
torch.compile, with its weights in the same dtype.
"""

import functools
import json
import statistics
import time

from absl import flags
import jax
import numpy as np

from irepa_jax import build
from irepa_jax import check
from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.diffusion import paths
from irepa_jax.diffusion import samplers
from irepa_jax.distributed import host_memory
from irepa_jax.distributed import sharding
from irepa_jax.distributed import start
from irepa_jax.evals import generate
from irepa_jax.jobs import setup
from irepa_jax.models import flops

SHAPE = ('patch', 'width', 'depth', 'heads', 'size', 'channels')
SHAPE += ('num_classes', 'align_depth')


def benchmark(config, *, batch_size=32, steps=4, repeats=5, against=''):
  """Returns the figures of a sampler on the devices at hand, as a dict.

  Args:
    config: model, dtype, sampler and guidance are read.
    batch_size: images at a time on all devices.
    steps: of a timed call.
    repeats: of the call, after the first.
    against: 'torch' alternates with PyTorch; Euler's method only.
  """
  check.config(config)
  if against and config.sampler != 'euler':
    raise errors.UsageError(
        f'--against={against} compares --config.sampler=euler; it is'
        f' {config.sampler}'
    )
  mesh = sharding.make_mesh(
      config.mesh_data, config.mesh_model, allow_subset=config.allow_subset
  )
  sharding.check_batch(batch_size, mesh)
  built = build.experiment(config, mesh)
  ours = sampler(built, config, mesh, batch_size, steps)
  if against:
    pairs = alternate(ours, built, config, batch_size, steps, repeats)
    seconds, theirs = (statistics.median(s) for s in zip(*pairs, strict=True))
  else:
    seconds = statistics.median(timed(ours) for _ in range(repeats))
  found = figures(built, config, mesh, batch_size, seconds / steps)
  if against:
    found['torch_img_per_s'] = found['img_per_s'] * seconds / theirs
    found['ratio'] = seconds / theirs
  return {k: _rounded(v) for k, v in found.items()}


def figures(built, config, mesh, batch_size, step_s):
  """Returns what follows from the seconds of one step of the sampler."""
  rate = batch_size / (step_s * config.sample_steps)
  return {
      'model': config.model,
      'dtype': config.dtype,
      'sampler': config.sampler,
      'guidance': config.guidance,
      'guided_share': guided_share(config),
      'device': mesh.devices.flat[0].device_kind,
      'devices': mesh.size,
      'batch_size': batch_size,
      'step_ms': 1e3 * step_s,
      'img_per_s': rate,
      'gflop_per_evaluation': flops.sit(built.model) / 1e9,
  }


def guided_share(config):
  """Returns the share of steps whose evaluation is of two labels."""
  if config.guidance == 1:
    return 0.0
  return max(0.0, config.guidance_high - config.guidance_low)


def sampler(built, config, mesh, batch_size, steps):
  """Returns a call that samples latents and waits for them."""
  init = lambda key: setup.init_params(built, key)['model']
  model = jax.jit(init, out_shardings=sharding.replicated(mesh))(
      jax.random.key(0)
  )
  model = generate.cast(model, built.model.dtype)
  draw = np.random.default_rng(0)
  side, channels = built.model.size, built.model.channels
  rows = sharding.batch_sharding(mesh)
  put = functools.partial(sharding.put, shardings=rows)
  x = put(draw.standard_normal((batch_size, side, side, channels), np.float32))
  labels = draw.integers(config.num_classes, size=batch_size, dtype=np.int32)
  labels = put(labels)

  @jax.jit
  def sample(model, noise, y):
    velocity = samplers.guided(
        built.objective.as_velocity(build.network(built.model, model)),
        y,
        scale=config.guidance,
        interval=(config.guidance_low, config.guidance_high),
        ends=config.guidance_ends,
        null_label=config.num_classes,
    )
    return samplers.SAMPLERS[config.sampler](
        velocity,
        noise,
        steps=steps,
        path=paths.PATHS[config.path],
        key=jax.random.key(0),
    )

  call = lambda: jax.block_until_ready(sample(model, x, labels))
  call()
  return call


def alternate(ours, built, config, batch_size, steps, repeats):
  """Returns [(our seconds, theirs)] of alternating calls."""
  from irepa_jax.tools.benchmarks import pytorch

  settings = {name: getattr(built.model, name) for name in SHAPE}
  with pytorch.Process(
      settings | {'target': 1},
      batch_size,
      make=pytorch.make_sampler,
      dtype=config.dtype,
      steps=steps,
      scale=config.guidance,
      interval=(config.guidance_low, config.guidance_high),
  ) as theirs:
    theirs.once()
    return [(timed(ours), theirs.once()) for _ in range(repeats)]


def timed(call):
  """Returns the seconds of a call."""
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _rounded(value):
  return float(f'{value:.4g}') if isinstance(value, float) else value


def define_flags():
  """Defines the flags of the command line."""
  cli.define_config()
  flags.DEFINE_integer('batch_size', 32, 'Images at a time.', lower_bound=1)
  flags.DEFINE_integer('steps', 4, 'Of a timed call.', lower_bound=1)
  flags.DEFINE_integer('repeats', 5, 'Timed calls.', lower_bound=1)
  flags.DEFINE_enum(
      'against', '', ['', 'torch'], 'A yardstick to alternate with.'
  )


def main(args):
  """Prints one JSON object; returns the exit status."""
  v = flags.FLAGS
  if args[1:] or v.config is None:
    raise errors.UsageError('--config=FILE is required; see --help')
  host_memory.keep_freed()
  start.join()
  found = benchmark(
      v.config,
      batch_size=v.batch_size,
      steps=v.steps,
      repeats=v.repeats,
      against=v.against,
  )
  print(json.dumps(found, indent=2))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
