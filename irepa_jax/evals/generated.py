"""Features of generated images, without the images.

An image of 256 pixels is 200 kB, its features are 20 kB: they are taken from a
batch where it was made, on the devices, and only they reach the host. A part
of `generate` then holds features where it held images, so that everything that
works for images, such as continuing a killed job, works for features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax.distributed import sharding
from irepa_jax.evals import statistics


def renderer(render, spaces, mesh):
  """Returns render(params, numbers) whose parts hold features [b d].

  All rows reach the first process, which is the one that scores.
  """
  whole = _whole(mesh)

  def render_features(params, numbers):
    part, finite = render(params, numbers)
    found = statistics.joined(spaces, part.images, mesh)
    return whole(part._replace(images=found)), finite

  return render_features


@functools.cache
def _whole(mesh):
  """Returns the jitted f(part) that concatenates features by their names."""
  join = lambda part: part._replace(
      images=jnp.concatenate([x for _, x in sorted(part.images.items())], 1)
  )
  return jax.jit(join, out_shardings=sharding.replicated(mesh))


def layout(spaces, side, mesh):
  """Returns {SPACE/FEATURE: width} in the order of the columns."""
  shape = (sharding.row_parts(mesh), *side, 3)
  image = jax.ShapeDtypeStruct(shape, jnp.uint8)
  found = {
      f'{space.name}/{name}': x.shape[1]
      for space in spaces
      for name, x in jax.eval_shape(space.extract, image).items()
  }
  return dict(sorted(found.items()))


def summarise(parts, count, widths):
  """Returns the statistics.Summary of `count` images from their parts.

  parts: generate.Part with features, in order; widths: of `layout`.
  """
  ends = np.cumsum(list(widths.values()))[:-1]
  blocks = (
      dict(zip(widths, np.split(part.images, ends, axis=1), strict=True))
      for part in parts
  )
  return statistics.summarise(blocks, count)
