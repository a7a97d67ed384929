"""Times the spatial metrics: images/s and memory on random tokens.

  python -m irepa_jax.tools.benchmarks.metrics

Measures what tools.analyze does with tokens once an encoder has made them: all
four metrics before and after spatial normalisation, with masks, one batch at a
time. The default is one encoder of the paper's study: 2,500 images of 16 x 16
tokens with 1,024 channels. Its 27 encoders take 27 times as long and, one after
the other, no more memory.
"""

import json
import resource
import sys

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import measure

ENCODERS, IMAGES = 27, 2500  # of the study
PIXELS = 256  # side of a mask
UNITS = {'linux': 1024}  # bytes in a unit of ru_maxrss; elsewhere 1


def benchmark(*, images=IMAGES, side=16, width=1024, batch_size=32):
  """Returns the figures as a dict.

  images: timed, after one batch that compiles; side: of the grid of tokens.
  """
  before = peak_mib()
  key = jax.random.key(0)
  tokens = jax.random.normal(key, (batch_size, side * side, width))
  # New tokens for every batch, at the price of a copy.
  encode = lambda batch: jnp.multiply(tokens, np.float32(1 + batch.index[0]))
  found = measure.measure(
      measure.Representation('random', (side, side), encode),
      batches(images + batch_size, batch_size),
  )
  rate = found.images_per_second
  return {
      'device': jax.devices()[0].device_kind,
      'images': found.timed,
      'tokens': side * side,
      'width': width,
      'batch_size': batch_size,
      'images_per_s': round(rate, 2),
      'study_hours': round(ENCODERS * IMAGES / rate / 3600, 3),
      'tokens_of_a_batch_mib': round(tokens.nbytes / 2**20, 1),
      'tokens_of_an_encoder_mib': round(IMAGES * tokens[0].nbytes / 2**20, 1),
      'peak_mib': round(peak_mib()),
      'peak_before_mib': round(before),
      'device_peak_mib': device_peak_mib(),
  }


def batches(images, batch_size):
  """Yields batches of masks, half foreground, without any pixels."""
  mask = np.zeros((batch_size, PIXELS, PIXELS), bool)
  mask[:, :, : PIXELS // 2] = True
  for start in range(0, images, batch_size):
    index = start + np.arange(batch_size)
    count = min(batch_size, images - start)
    yield inputs.Batch(index, count, None, None, mask, None)


def peak_mib():
  """Returns the largest memory this process has had, MiB."""
  unit = UNITS.get(sys.platform, 1)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def device_peak_mib():
  """Returns the largest memory in use on the device, MiB; None on a CPU."""
  statistics = jax.devices()[0].memory_stats() or {}
  peak = statistics.get('peak_bytes_in_use')
  return None if peak is None else round(peak / 2**20)


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_integer('images', IMAGES, 'Timed images.', lower_bound=1)
  flags.DEFINE_integer('side', 16, 'Of the token grid.', lower_bound=2)
  flags.DEFINE_integer('width', 1024, 'Channels of a token.', lower_bound=1)
  flags.DEFINE_integer('batch_size', 32, 'Images at a time.', lower_bound=1)


def main(args):
  """Prints one JSON object; returns the exit status."""
  if args[1:]:
    raise errors.UsageError(f'unexpected argument {args[1]!r}; see --help')
  v = flags.FLAGS
  figures = benchmark(
      images=v.images, side=v.side, width=v.width, batch_size=v.batch_size
  )
  print(json.dumps(figures, indent=2))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
