"""A small prepared data set with everything in it, without any network."""

import numpy as np

from irepa_jax.data import images
from irepa_jax.data import manifest as manifests
from irepa_jax.data import records

SIZE, SHAPE, TOKENS = 8, (4, 4, 4), (4, 6)


def moments(i, flip=False):
  """Latents whose mean tells the record, as [4 4 mean|std of 2 channels]."""
  values = np.random.default_rng([i, flip]).normal(size=SHAPE)
  values[..., 2:] = np.abs(values[..., 2:]) * 0.1
  values[0, 0, 0] = i / 100
  return values.astype(np.float16)


def pixels(i):
  values = np.zeros((SIZE, SIZE, 3), np.uint8)
  values[:, :, 0] = i % 256
  values[:, :, 1] = np.arange(SIZE) * 10
  return values


def tokens(i, flip=False):
  return np.full(TOKENS, 2 * i + flip, np.float32)


def write(folder, count=50, shards=3, flips=True, classes=10, **changes):
  """Writes records 0..count-1 (label i % classes) and their manifest."""
  folder.mkdir(parents=True, exist_ok=True)
  made = {'data': [], 'flip': []}
  for kind in ('data', 'flip')[: 1 + flips]:
    flip = kind == 'flip'
    for k, part in enumerate(np.array_split(np.arange(count), shards)):
      path = folder / f'{kind}-{k}.array_record'
      with records.writer(path) as add:
        for i in part:
          image = b'' if flip else images.encode(pixels(i), 'png')
          row = dict(moments=moments(i, flip), features=[tokens(i, flip)])
          add(records.pack(i % classes, image=image, **row))
      made[kind].append(records.describe(path))
  manifest = manifests.Manifest(**{**fields(count, classes), **made_of(made), **changes})
  manifests.write(folder, manifest)
  return manifest


def made_of(made):
  return {'shards': tuple(made['data']), 'flips': tuple(made['flip'])}


def fields(count, classes):
  mean, std = np.split(np.stack([moments(i) for i in range(count)]), 2, -1)
  mean, std = np.float64(mean), np.float64(std)
  centre = mean.mean((0, 1, 2))
  spread = np.sqrt((mean**2 + std**2).mean((0, 1, 2)) - centre**2)
  return dict(
      count=count,
      image_size=SIZE,
      image_format='png',
      num_classes=classes,
      class_names=tuple(map(str, range(classes))),
      label_range=(0, min(count, classes) - 1),
      autoencoder='tiny',
      autoencoder_sha256='a' * 64,
      moments_shape=SHAPE,
      latent_mean=tuple(centre.tolist()),
      latent_std=tuple(spread.tolist()),
      bias=tuple(centre.tolist()),
      scale=tuple((1 / spread).tolist()),
      encoders=(manifests.Features('enc', 'b' * 64, TOKENS),),
      skipped=0,
      settings={'source': 'test'},
  )
