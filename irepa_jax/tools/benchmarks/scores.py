"""Times the scores at full size: seconds and peak memory, on random features.

  python -m irepa_jax.tools.benchmarks.scores --part=all
  python -m irepa_jax.tools.benchmarks.scores --part=precision_recall

Parts: all (FID, sFID, Inception Score, precision, recall and KID of as many
samples as real images, as an evaluation computes them), all_adm (10,000 real
images have features of their own, as in the ADM suite), fid (moments of two
sets, summed in batches, and the distance), precision_recall,
precision_recall_adm, kid, cmmd, inception (images/s of the network, weights
random). One part per command, because peak memory is that of the process.
Random features take time themselves: it is not in `seconds`. Where others use
the machine, cpu_s divided by the number of cores is nearer to the truth.
"""

import contextlib
import functools
import json
import resource
import sys
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.evals import judge
from irepa_jax.evals import scores
from irepa_jax.evals import statistics
from irepa_jax.models import inception

REFERENCE = 10_000  # real images of the ADM suite
SPATIAL, LOGITS = 2023, 1008  # channels of sFID and of the Inception Score
EMBEDDING = 768  # of CLIP
NETWORK = 'inception'
BATCH = 1024  # rows whose moments are summed at once
REPEATS = 5  # of the network
SIDE = 256
RSS_UNIT = 1 if sys.platform == 'darwin' else 1024  # bytes of ru_maxrss


class Stopwatch:
  """Seconds of the wall clock and of all cores, while it runs."""

  def __init__(self):
    self.seconds = self.cpu_s = 0.0
    self._start()

  def _start(self):
    self._at = time.perf_counter(), time.process_time()

  def stop(self):
    """Adds what has passed since the start."""
    self.seconds += time.perf_counter() - self._at[0]
    self.cpu_s += time.process_time() - self._at[1]

  @contextlib.contextmanager
  def paused(self):
    self.stop()
    yield
    self._start()


def rows(count, width, seed, watch=None):
  """Returns features like those of a ReLU network, float32 [count width].

  Their time is not on the watch.
  """
  with watch.paused() if watch else contextlib.nullcontext():
    spread = np.random.default_rng(0).random(width, np.float32)
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((count, width), np.float32)
    x *= np.float32(0.5) + spread
    return np.maximum(x, 0, out=x)


def everything(count, width, watch, kept=None):
  """Scores samples against as many real images, of which some are kept."""
  sets = [
      statistics.summarise(_blocks(count, width, seed, watch), count, kept=k)
      for seed, k in ((0, kept), (1, None))
  ]
  values, left_out = judge.compare(sets[1], sets[0])
  return values | {'left_out': left_out}


def _blocks(count, width, seed, watch):
  """Yields what the Inception network would give for a set of images."""
  for i in range(0, count, BATCH):
    draw = functools.partial(rows, min(BATCH, count - i), watch=watch)
    yield {
        statistics.POOL: draw(width, [seed, i, 0]),
        statistics.SPATIAL: draw(min(SPATIAL, width), [seed, i, 1]),
        statistics.LOGITS: draw(LOGITS, [seed, i, 2]),
    }


def everything_adm(count, width, watch):
  return everything(count, width, watch, REFERENCE)


def fid(count, width, watch):
  fits = []
  for seed in (0, 1):
    x, moments = rows(count, width, seed, watch), scores.no_moments(width)
    for i in range(0, count, BATCH):
      moments = scores.add(moments, x[i : i + BATCH])
    fits += scores.statistics(moments)
  start = time.perf_counter()
  value = scores.fid(*fits)
  return {'value': value, 'distance_s': time.perf_counter() - start}


def precision_recall(count, width, watch, real=None):
  real = rows(min(real or count, count), width, 0, watch)
  found = scores.precision_recall(real, rows(count, width, 1, watch))
  return dict(zip(('precision', 'recall'), found, strict=True))


def precision_recall_adm(count, width, watch):
  return precision_recall(count, width, watch, REFERENCE)


def kid(count, width, watch):
  real, fake = (rows(count, width, seed, watch) for seed in (0, 1))
  return {'value': scores.kid(real, fake)[0]}


def cmmd(count, width, watch):
  del width
  real, fake = (rows(count, EMBEDDING, seed, watch) for seed in (0, 1))
  return {'value': scores.cmmd(real, fake)}


def network(batch_size):
  model = inception.Inception()
  key = jax.random.key(0)
  params = model.init(key, jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8))['params']
  images = jax.random.randint(key, (batch_size, SIDE, SIDE, 3), 0, 256)
  images = images.astype(jnp.uint8)
  features = jax.jit(lambda p, x: model.apply({'params': p}, x))
  jax.block_until_ready(features(params, images))
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(features(params, images))
    seconds.append(time.perf_counter() - start)
  return {'batch_size': batch_size, 'img_per_s': batch_size / min(seconds)}


PARTS = {
    'all': everything,
    'all_adm': everything_adm,
    'fid': fid,
    'precision_recall': precision_recall,
    'precision_recall_adm': precision_recall_adm,
    'kid': kid,
    'cmmd': cmmd,
}


def measure(part, *, count=50_000, width=2048, batch_size=32):
  """Runs a part of PARTS and returns what it took, as a dict."""
  watch = Stopwatch()
  if part == NETWORK:
    found = network(batch_size)
  else:
    found = PARTS[part](count, width, watch)
  watch.stop()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
  return {
      'part': part,
      'count': count,
      'device': jax.devices()[0].device_kind,
      'peak_gb': round(peak / 1e9, 2),
      **found,
      'seconds': round(watch.seconds, 2),
      'cpu_s': round(watch.cpu_s, 2),
  }


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_enum('part', 'all', [*PARTS, NETWORK], 'What is measured.')
  flags.DEFINE_integer('count', 50_000, 'Images of each set.', lower_bound=8)
  flags.DEFINE_integer('width', 2048, 'Channels of a feature.', lower_bound=1)
  flags.DEFINE_integer('batch_size', 32, 'inception: images.', lower_bound=1)


def main(args):
  """Prints one JSON object; returns the exit status."""
  v = flags.FLAGS
  if args[1:]:
    raise errors.UsageError(f'unknown argument {args[1]!r}; see --help')
  found = measure(v.part, count=v.count, width=v.width, batch_size=v.batch_size)
  print(json.dumps(found, indent=2))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
