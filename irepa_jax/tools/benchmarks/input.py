"""Times the input pipeline: records per second of one core, for each source.

A data set of random records is written for each of SOURCES and read as training
reads it, decoded and put together into batches. What counts is the time of all
cores, which does not change with the number of threads nor with what else the
machine does; a chip needs as many cores as it takes for its images per second.
"""

import pathlib
import tempfile
import time
from typing import NamedTuple

import numpy as np

from irepa_jax import build
from irepa_jax.data import images
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.data import records
from irepa_jax.jobs import setup
from irepa_jax.runs import chips

COUNT = 256  # records of a data set; all of them fit into the page cache
BATCH = 64
BATCHES = 24
SIDE, MOMENTS = 256, (32, 32, 8)
TOKENS = (256, 768)  # cached features of a base-size encoder


class Source(NamedTuple):
  """What stands in a record beside its label."""

  moments: bool = False
  image_format: str = 'none'
  features: bool = False


SOURCES = {
    'latents': Source(moments=True),
    'latents and jpeg': Source(moments=True, image_format='jpeg'),
    'latents and png': Source(moments=True, image_format='png'),
    'latents and features': Source(moments=True, features=True),
    'jpeg': Source(image_format='jpeg'),
}


# What of its peak a chip is expected to reach in a step of SiT-XL/2: on v5e by
# the schedule of its compiler (docs/performance.md), on the others assumed.
UTILISATION = {'TPU v5e': 0.47, 'TPU v6e': 0.22, 'NVIDIA H100': 0.48}


def benchmark(config, *, threads=16):
  """Returns {'chips': ..., 'sources': ...}, figures for JSON.

  config: whose step the chips do; threads: that read, 0 is none.
  """
  flops = setup.train_flops(build.experiment(config), config)
  peaks = {chip.kind: chip.peak for chip in chips.CHIPS}
  rates = {
      name: round(peaks[name] * share / flops, 1)
      for name, share in UTILISATION.items()
  }
  sources = {}
  for name, source in SOURCES.items():
    found = measure(source, threads)
    sources[name] = found | {
        'cores_per_chip': {
            chip: round(rate / found['per_core_s'], 2)
            for chip, rate in rates.items()
        }
    }
  return {
      'model': config.model,
      'img_per_s_of_a_chip': rates,
      'threads': threads,
      'sources': sources,
  }


def measure(source, threads):
  """Returns the rates of reading one source, as a dict.

  per_s: records/s by the clock; per_core_s: for one second of one core.
  """
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    size = write(folder, source)
    data = pipeline.load(folder)
    batches = pipeline.batches(data, batch_size=BATCH, seed=0, threads=threads)
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
      next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()
    data.close()
  return {
      'bytes': size,
      'per_s': round(BATCHES * BATCH / wall, 1),
      'per_core_s': round(BATCHES * BATCH / cpu, 1),
  }


def write(folder, source):
  """Writes a data set of random records; returns the bytes of one record."""
  draw, size = np.random.default_rng(0), 0
  moments = draw.standard_normal(MOMENTS).astype(np.float16)
  features = [draw.standard_normal(TOKENS, np.float32)]
  path = folder / 'data-0.array_record'
  with records.writer(path) as add:
    for i in range(COUNT):
      image = b''
      if source.image_format != 'none':
        image = images.encode(picture(draw), source.image_format)
      record = records.pack(
          i % 10,
          moments=moments if source.moments else None,
          image=image,
          features=features if source.features else (),
      )
      add(record)
      size += len(record)
  manifests.write(folder, described(source, records.describe(path), moments))
  return size // COUNT


def picture(draw):
  """Returns a picture with a spectrum like that of photographs, uint8.

  Of every octave as much: noise of 1, 2, 4 ... pixels, each of equal strength.
  """
  x = np.zeros((SIDE, SIDE, 3))
  for k in range(8):
    coarse = draw.standard_normal((SIDE >> k, SIDE >> k, 3))
    x += coarse.repeat(1 << k, 0).repeat(1 << k, 1)
  return np.uint8(np.clip(128 + 20 * x, 0, 255))


def described(source, shard, moments):
  """Returns the manifest of such a data set."""
  mean, std = np.split(np.float64(moments), 2, -1)
  centre = mean.mean((0, 1)) if source.moments else np.zeros(0)
  spread = np.sqrt((mean**2 + std**2).mean((0, 1)) - mean.mean((0, 1)) ** 2)
  spread = spread[: len(centre)]
  encoders = (manifests.Features('random', 'b' * 64, TOKENS),)
  return manifests.Manifest(
      count=COUNT,
      image_size=SIDE,
      image_format=source.image_format,
      num_classes=10,
      class_names=tuple(map(str, range(10))),
      label_range=(0, 9),
      autoencoder='random' if source.moments else 'none',
      autoencoder_sha256='',
      moments_shape=MOMENTS if source.moments else (),
      latent_mean=tuple(centre.tolist()),
      latent_std=tuple(spread.tolist()),
      bias=tuple(centre.tolist()),
      scale=tuple((1 / spread).tolist()),
      encoders=encoders if source.features else (),
      shards=(shard,),
      flips=(),
      skipped=0,
      settings={'source': 'random'},
  )


def table(found):
  """Returns figures of `benchmark` as lines for a terminal."""
  chips = found['img_per_s_of_a_chip']
  rates = ', '.join(f'{name} {rate}' for name, rate in chips.items())
  lines = [f'{found["model"]}, img/s of one chip by estimate: {rates}', '']
  head = ['records', 'KB', '/s', '/s per core', *(f'cores, {c}' for c in chips)]
  rows = [head, ['---'] * len(head)]
  for name, row in found['sources'].items():
    cores = map(str, row['cores_per_chip'].values())
    figures = [f'{row["bytes"] / 1000:.0f}', row['per_s'], row['per_core_s']]
    rows.append([name, *map(str, figures), *cores])
  return lines + [f'| {" | ".join(row)} |' for row in rows]
