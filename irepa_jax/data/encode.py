"""Images to what a record keeps, over the devices of this process.

The autoencoder's moments and the tokens of the encoders, of an image and, with
flips, of its mirror image. Matrix products keep float32 inputs to 11 bits or
more on every device (TF32 on GPUs, three bfloat16 passes on TPUs): no worse
than the float16 in which moments are stored.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from irepa_jax.data import records
from irepa_jax.distributed import sharding

PRECISION = 'high'


class View(NamedTuple):
  """What is stored of a batch of images, or of their mirror images."""

  moments: Any  # float16 [b h w 2c], or None without an autoencoder
  features: tuple  # bfloat16 [b n d] per encoder


class Encode(NamedTuple):
  """run(uint8 images) returns a list of Views: the images, their mirrors."""

  run: Callable
  batch_size: int  # images that it takes at once
  views: int  # 1, or 2 with flips


def make(autoencoder, encoders, *, flip, batch_size):
  """Puts weights on the local devices and returns an Encode.

  Args:
    autoencoder: (models.Autoencoder, params), or None.
    encoders: of (encoders.Encoder, params).
    flip: whether the mirror images are a second view.
    batch_size: images per device.
  """
  mesh = sharding.make_mesh(devices=jax.local_devices())

  def view(params, images):
    moments = None
    if autoencoder is not None:
      moments = autoencoder[0].encode(params[0], images)
      moments = moments.astype(records.MOMENTS_DTYPE)
    tokens = [
        encoder.encode(p, images).astype(records.FEATURES_DTYPE)
        for (encoder, _), p in zip(encoders, params[1], strict=True)
    ]
    return View(moments, tuple(tokens))

  @jax.jit
  def views(params, images):
    sides = [images, images[:, :, ::-1]] if flip else [images]
    return [view(params, side) for side in sides]

  params = [autoencoder[1] if autoencoder else {}, [p for _, p in encoders]]
  params = sharding.put(params, sharding.tree_shardings(params, mesh))

  def run(images):
    images = jax.device_put(images, sharding.batch_sharding(mesh))
    with jax.default_matmul_precision(PRECISION):
      return views(params, images)

  return Encode(run, batch_size * mesh.size, 2 if flip else 1)


def to_host(views):
  """Waits for the devices and returns the views as numpy arrays."""
  return jax.tree.map(np.asarray, views)
