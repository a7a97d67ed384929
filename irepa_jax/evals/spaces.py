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

from irepa_jax import errors
from irepa_jax import sharding
from irepa_jax import weights
from irepa_jax.models import inception as networks
from irepa_jax.models import inception_weights

INCEPTION = 'inception'


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
      weights.sha256(path),
      None,
      functools.partial(_inception_features, params),
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


@jax.jit
def _inception_features(params, images):
  found = networks.Inception().apply({'params': params}, images)
  return {
      'pool': found.pool,
      'spatial': found.spatial,
      'logits': found.unbiased,
  }
