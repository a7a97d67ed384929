"""Feature spaces: networks that turn images into the rows that scores compare.

  space = inception('weights-inception-2015-12-05-6726825d.pth', mesh=mesh)
  space.extract(images)['pool']   # [b 2048], rows split as the images are

The space of published FIDs is the 2015 Inception; other encoders have the same
face. A score is only as good as its network, so each carries the SHA-256 of its
weight file, which goes into every result.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.models import inception as networks
from irepa_jax.models import inception_weights
from irepa_jax.weights import files

INCEPTION = 'inception'
CHUNK = 32  # images at a time on one device


class Space(NamedTuple):
  """A network with its weights in place, and what to call it in a result.

  name: in results: 'inception', or an encoder's.
  sha256: of the weight file.
  resolution: side of the images it wants, None where any will do.
  extract: images uint8 [b h w 3] -> {name of the features: float32 [b d]}. The
    name says what reads them: 'pool' and 'spatial' a Frechet distance, 'logits'
    the Inception Score, 'embedding' CMMD.
  """

  name: str
  sha256: str
  resolution: int | None
  extract: Callable[[Any], dict[str, jax.Array]]


def inception(source=None, *, mesh=None) -> Space:
  """Reads the Inception of FID: 'pool' 2048, 'spatial' 2023, 'logits' 1008.

  Args:
    source: of its weights, a path or hub id; None is the published file.
    mesh: on which every device gets the weights, and images come split over
      `data`; None is one device.

  The logits are those without the bias, that the Inception Score reads.
  """
  path = inception_file(source)
  params = place(inception_weights.load(path), mesh)
  return Space(
      INCEPTION,
      files.sha256(path),
      None,
      functools.partial(by_chunks(_inception_features, mesh), params),
  )


def inception_file(source=None):
  """Returns the local file of the weights; DataError says where to get them."""
  try:
    return inception_weights.fetch(source or None)
  except errors.DataError as error:
    raise errors.DataError(
        f'weights of Inception: {error} (published:'
        f' {inception_weights.PUBLISHED}; --inception=PATH, in training'
        ' --config.eval_inception=PATH)'
    ) from error


def place(params, mesh):
  """Puts weights on every device of a mesh, or on the default device."""
  if mesh is None:
    return jax.device_put(params)
  whole = jax.tree.map(lambda _: sharding.replicated(mesh), params)
  return sharding.put(params, whole)


def by_chunks(features, mesh=None):
  """Returns features(params, images), jitted, in chunks on every device.

  features: (params, images uint8 [b h w 3]) -> {name: [b d]}, of every image by
  itself. A device takes at most CHUNK images at a time, so that memory does not
  grow with the batch: Inception needs 34 MB for each.
  """

  def in_chunks(params, images):
    n = len(images)
    if n <= CHUNK:
      return features(params, images)
    count = -(-n // CHUNK)
    size = -(-n // count)
    chunks = jnp.pad(images, [(0, count * size - n)] + [(0, 0)] * 3)
    chunks = chunks.reshape(count, size, *images.shape[1:])
    found = jax.lax.map(functools.partial(features, params), chunks)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[:n], found)

  if mesh is None:
    return jax.jit(in_chunks)
  rows = jax.P(sharding.ROWS)
  split = jax.shard_map(
      in_chunks, mesh=mesh, in_specs=(jax.P(), rows), out_specs=rows,
      check_vma=False,
  )  # fmt: skip
  return jax.jit(split)


def _inception_features(params, images):
  found = networks.Inception().apply({'params': params}, images)
  return {
      'pool': found.pool,
      'spatial': found.spatial,
      'logits': found.unbiased,
  }
