"""Times encoders alone, and says what share of a training step each would be.

  python -m irepa_jax.tools.benchmarks.encoders --config=configs/sit_xl.py \
      --config.encoder=dinov2-vit-b,pe-vit-l,hog-vit-g16_d128
  python -m irepa_jax.tools.benchmarks.encoders --config=configs/sit_xl.py --all

Weights and images are random. With t and s the seconds per image of the encoder
and of a step that reads stored features, an encoder in the step takes the share

  t / (t + s)

and the step runs at 1 / (t + s) instead of 1 / s images per second. Both are
measured in one run. --all adds every other name of the table with the share
that follows from the FLOPs alone.
"""

import statistics

from absl import flags
import jax
import numpy as np

from irepa_jax import build
from irepa_jax import cli
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.distributed import host_memory
from irepa_jax.distributed import sharding
from irepa_jax.distributed import start
from irepa_jax.jobs import setup
from irepa_jax.tools.benchmarks import step

COLUMNS = (
    'encoder', 'batch', 'ms', 'img/s', 'TFLOP/s', 'share', 'step img/s',
)  # fmt: skip


def benchmark_encoders(config, *, images=8, repeats=5, others=False):
  """Returns (seconds per image of the cached step, rows), rows as dicts.

  Args:
    config: of the step; its encoders are timed, at its image size and dtypes.
    images: in one call of an encoder.
    repeats: of every timed call, after the first.
    others: adds the names that are not timed, by their FLOPs.
  """
  mesh = setup.make_mesh(config)
  sharding.check_batch(images, mesh)
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  built = build.experiment(config, mesh)
  step_s = cached_step_s(_cached(config), mesh, repeats) / config.batch_size
  rows = []
  for encoder in built.encoders:
    seconds = encoder_s(encoder, mesh, images, repeats, fsdp=config.fsdp)
    rows.append(_row(encoder, images, seconds, step_s))
  if others:
    rows += _by_flops(config, {encoder.name for encoder in built.encoders})
  return step_s, rows


def encoder_s(encoder, mesh, images, repeats, *, fsdp=True):
  """Returns the median seconds of encoding a number of random images."""
  shapes = jax.eval_shape(encoder.init, jax.random.key(0))
  split = sharding.tree_shardings(shapes, mesh, fsdp=fsdp)
  params = jax.jit(encoder.init, out_shardings=split)(jax.random.key(0))
  side = encoder.resolution
  pixels = np.random.default_rng(0).integers(
      256, size=(images, side, side, 3), dtype=np.uint8
  )
  x = sharding.put(pixels, sharding.batch_sharding(mesh))
  encode = jax.jit(encoder.encode)
  return step.median_s(lambda: encode(params, x), repeats)


def cached_step_s(config, mesh, repeats):
  """Returns the median seconds of a training step with stored features."""
  built = build.experiment(config, mesh)
  timed = step.Ours(built, config, mesh)
  return statistics.median(timed.once() for _ in range(repeats))


def _cached(config):
  """Returns the config of the same step with the features of one encoder."""
  config = config.copy_and_resolve_references()
  first = config.encoder.split(',')[0]
  config.update({'encoder': first, 'encoder_weights': ''})
  config.update({'features': 'cached', 'align_coefficient': '1.0'})
  return config


def _row(encoder, images, seconds, step_s):
  each = seconds / images
  flops = encoder.flops
  return {
      'encoder': encoder.name,
      'batch': images,
      'ms': _rounded(1e3 * seconds),
      'img/s': _rounded(1 / each),
      'TFLOP/s': _rounded(flops / each / 1e12) if flops else None,
      'share': f'{each / (each + step_s):.1%}',
      'step img/s': _rounded(1 / (each + step_s)),
  }


def _by_flops(config, timed):
  """Returns rows of the encoders that were not timed."""
  built = build.experiment(_cached(config))
  step = setup.train_flops(built, _cached(config))
  rows = []
  for known in encoders.table(resolution=config.image_size):
    if known['gflops'] and known['name'] not in timed:
      flops = 1e9 * known['gflops']
      share = f'{flops / (flops + step):.1%} by FLOPs'
      rows.append({'encoder': known['name'], 'share': share})
  return rows


def _rounded(value):
  """Rounds to three digits."""
  return float(f'{value:.3g}')


def table(rows):
  """Returns rows as the lines of a Markdown table."""
  lines = [COLUMNS, ('---',) * len(COLUMNS)]
  lines += [
      ['' if row.get(c) is None else str(row[c]) for c in COLUMNS]
      for row in rows
  ]
  return [f'| {" | ".join(line)} |' for line in lines]


def define_flags():
  """Defines the flags of the command line."""
  cli.define_config()
  flags.DEFINE_integer('images', 8, 'In a call of an encoder.', lower_bound=1)
  flags.DEFINE_integer('repeats', 5, 'Timed calls.', lower_bound=1)
  flags.DEFINE_bool('all', False, 'Add all other encoders, by their FLOPs.')


def main(args):
  """Prints the table; returns the exit status."""
  v = flags.FLAGS
  if args[1:] or v.config is None or not v.config.encoder:
    raise errors.UsageError(
        '--config=FILE with --config.encoder=NAME,... is required; see --help'
    )
  host_memory.keep_freed()
  start.join()
  step_s, rows = benchmark_encoders(
      v.config, images=v.images, repeats=v.repeats, others=v.all
  )
  kind = jax.devices()[0].device_kind
  print(
      f'{kind} x {jax.device_count()}, encoders in {v.config.encoder_dtype}. A'
      f' {v.config.model} step ({v.config.dtype}, batch'
      f' {v.config.batch_size}) with stored features:'
      f' {_rounded(1 / step_s)} img/s\n'
  )
  print('\n'.join(table(rows)))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
