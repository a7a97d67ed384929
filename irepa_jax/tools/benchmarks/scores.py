"""Times the scores at full size: seconds and peak memory, on random features.

  python -m irepa_jax.tools.benchmarks.scores --part=fid
  python -m irepa_jax.tools.benchmarks.scores --part=precision_recall

Parts: fid (moments of two sets, summed in batches, and the distance),
precision_recall (all against all), precision_recall_adm (10,000 real images,
as the ADM suite), kid, cmmd, inception (images/s of the network, weights
random). One part per command, because peak memory is that of the process.
"""

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
from irepa_jax.evals import scores
from irepa_jax.models import inception

REFERENCE = 10_000  # real images of the ADM suite
EMBEDDING = 768  # of CLIP
BATCH = 1024  # rows whose moments are summed at once
REPEATS = 5  # of the network
SIDE = 256
RSS_UNIT = 1 if sys.platform == 'darwin' else 1024  # bytes of ru_maxrss


def rows(count, width, seed):
  """Returns features like those of a ReLU network, float32 [count width]."""
  draw = np.random.default_rng(seed)
  x = draw.standard_normal((count, width), np.float32)
  x *= np.float32(0.5) + draw.random(width, np.float32)
  return np.maximum(x, 0, out=x)


def fid(count, width, batch_size):
  del batch_size
  fits = []
  for seed in (0, 1):
    x, moments = rows(count, width, seed), scores.no_moments(width)
    for i in range(0, count, BATCH):
      moments = scores.add(moments, x[i : i + BATCH])
    fits += scores.statistics(moments)
  start = time.perf_counter()
  value = scores.fid(*fits)
  return {'value': value, 'distance_s': time.perf_counter() - start}


def precision_recall(count, width, batch_size, real=None):
  del batch_size
  real = rows(min(real or count, count), width, 0)
  found = scores.precision_recall(real, rows(count, width, 1))
  return dict(zip(('precision', 'recall'), found, strict=True))


def precision_recall_adm(count, width, batch_size):
  return precision_recall(count, width, batch_size, REFERENCE)


def kid(count, width, batch_size):
  del batch_size
  return {'value': scores.kid(rows(count, width, 0), rows(count, width, 1))[0]}


def cmmd(count, width, batch_size):
  del width, batch_size
  real, fake = (rows(count, EMBEDDING, seed) for seed in (0, 1))
  return {'value': scores.cmmd(real, fake)}


def network(count, width, batch_size):
  del count, width
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
    'fid': fid,
    'precision_recall': precision_recall,
    'precision_recall_adm': precision_recall_adm,
    'kid': kid,
    'cmmd': cmmd,
    'inception': network,
}


def measure(part, *, count=50_000, width=2048, batch_size=32):
  """Runs a part of PARTS and returns what it took, as a dict."""
  start = time.perf_counter()
  found = PARTS[part](count, width, batch_size)
  found['seconds'] = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
  return {
      'part': part,
      'count': count,
      'device': jax.devices()[0].device_kind,
      'peak_gb': round(peak / 1e9, 2),
      **found,
  }


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_enum('part', 'fid', list(PARTS), 'What is measured.')
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
