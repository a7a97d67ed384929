"""Images by their number: image i is a function of (weights, seed, i).

Its label, its first noise and the noise of every step come from
fold_in(key(seed), i), so a seed gives the same images on any number of
devices and processes and in batches of any size. Only products may round
differently when they are split otherwise: on CPUs batches of 1 to 8 agree bit
for bit in float32 alone; in bfloat16 they do not, and a mesh of 8 moves up to
3 % of the values by one level of 255. Batches go over the mesh, and every process receives the rows that its
own devices made.

  render = make_renderer(sample, seed=0, num_classes=1000, shape=(32, 32, 4))
  for part in generate(render, params, range(50_000), batch_size=256):
    parts.write(folder, part)
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.models import layers

NOBODY = -1  # the number of a row that only fills a batch


class Part(NamedTuple):
  """Images with their numbers, in ascending order, on the host.

  numbers: int32 [b].
  labels: int32 [b].
  images: uint8 [b h w 3].
  """

  numbers: np.ndarray
  labels: np.ndarray
  images: np.ndarray


def truncate(images):
  """Maps [-1, 1] to 0..255 as the released code: the fraction is cut off."""
  return jnp.clip(255 * _unit(images), 0, 255).astype(jnp.uint8)


def nearest(images):
  """Maps [-1, 1] to the nearest of 0..255; half a level brighter on average."""
  return jnp.round(jnp.clip(255 * _unit(images), 0, 255)).astype(jnp.uint8)


QUANTISE = {'truncate': truncate, 'round': nearest}


def make_renderer(
    sample: Callable[..., jax.Array],
    *,
    seed: int,
    num_classes: int,
    shape: tuple[int, ...],
    labels: str | Sequence[int] = 'random',
    quantise: str = 'truncate',
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Any, jax.Array], Any]:
  """Returns render(params, numbers [b]), jitted, for `generate`.

  Args:
    sample: (params, noise [b ...], y [b], keys [b]) -> images [b H W 3] in
      [-1, 1]. keys are for the noise of the steps.
    seed: of all images.
    num_classes: labels are below it.
    shape: of the noise of one image, as the latents.
    labels: 'random'; 'balanced': image i is of class i modulo num_classes; or
      classes that are repeated in order.
    quantise: 'truncate' or 'round'.
    mesh: whose `data` axis splits a batch; None is one device.
  """
  choose = _labels(labels, num_classes)
  quantised = QUANTISE[quantise]

  def render(params, numbers):
    root = jax.random.key(seed)
    keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers)
    k_label, k_start, k_steps = jax.vmap(
        lambda key: jax.random.split(key, 3), out_axes=1
    )(keys)
    y = jax.vmap(choose)(k_label, numbers)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(k_start)
    images = sample(params, noise, y, k_steps)
    finite = jnp.isfinite(images).all(axis=(1, 2, 3)) | (numbers == NOBODY)
    return Part(numbers, y, quantised(images)), jnp.all(finite)

  if mesh is None:
    return jax.jit(render)
  rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  return jax.jit(render, out_shardings=(Part(rows, rows, rows), whole))


def generate(
    render: Callable[[Any, jax.Array], Any],
    params: Any,
    numbers: Sequence[int],
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    poll: Callable[[], bool] = lambda: False,
) -> Iterator[Part]:
  """Yields the images of these numbers, as far as they are this process's.

  While a part is being used the next one is already computed; images leave
  the device as soon as they are made, whatever it does next.

  Args:
    render: of make_renderer, with the same mesh.
    params: for its `sample`, placed on the mesh.
    numbers: of the images wanted, the same on all processes.
    batch_size: of the whole mesh; a shorter job takes a smaller batch.
    mesh: of make_renderer.
    poll: asked before every batch, on all processes alike; true ends early.

  Raises DataError when an image is not finite.
  """
  unit = sharding.row_parts(mesh) if mesh else 1
  if mesh:
    sharding.check_batch(batch_size, mesh)
  size = min(batch_size, -(-len(numbers) // unit) * unit)
  ahead = None
  for first in range(0, len(numbers), max(size, 1)):
    if poll():
      break
    batch = np.full(size, NOBODY, np.int32)
    chosen = numbers[first : first + size]
    batch[: len(chosen)] = chosen
    done, ahead = ahead, _leaving(render(params, _place(batch, mesh)))
    if done is not None:
      yield _finished(*done)
  if ahead is not None:
    yield _finished(*ahead)


def cast(params, dtype):
  """Casts weights once, before a sampling loop; they stay where they are.

  A model that computes in this dtype gives the same images, bit for bit, and
  reads half the memory in every step.
  """
  return jax.jit(functools.partial(layers.cast, dtype=dtype))(params)


def _labels(labels, num_classes):
  """Returns label(key, number) of one image."""
  if isinstance(labels, str):
    if labels not in LABELS:
      raise errors.UsageError(
          f'labels are {labels!r}; {", ".join(LABELS)} or a list of classes'
      )
    return lambda key, number: LABELS[labels](key, number, num_classes)
  table = np.asarray(labels, np.int32)
  wrong = table[(table < 0) | (table >= num_classes)]
  if wrong.size or not table.size:
    raise errors.UsageError(
        f'labels are {table[:8].tolist()}; at least one, all of them from 0 to'
        f' {num_classes - 1}'
    )
  return lambda key, number: jnp.asarray(table)[number % table.size]


LABELS = {
    'random': lambda key, number, count: jax.random.randint(key, (), 0, count),
    'balanced': lambda key, number, count: number % count,
}


def _unit(images):
  return (images.astype(jnp.float32) + 1) / 2


def _place(batch, mesh):
  if mesh is None:
    return jnp.asarray(batch)
  return sharding.put(batch, sharding.batch_sharding(mesh))


def _leaving(made):
  """Starts the transfer of arrays to the host, for when they are computed."""
  for array in jax.tree.leaves(made):
    array.copy_to_host_async()
  return made


def _finished(part, finite):
  """Brings this process's rows of a batch to the host."""
  rows = Part(*map(_local, part))
  if not finite:
    raise errors.DataError(
        f'of the images {rows.numbers.tolist()[:4]} ... of a batch some are not'
        ' finite: look at the weights, the guidance and the latent statistics'
    )
  return Part(*(column[rows.numbers != NOBODY] for column in rows))


def _local(array):
  """Returns the rows on this process's devices, each once, in order.

  Rows that every device holds are those of the first process.
  """
  none = np.zeros((0, *array.shape[1:]), array.dtype)
  if array.is_fully_replicated:
    whole = array.addressable_data(0)
    return np.asarray(whole) if jax.process_index() == 0 else none
  shards = {
      shard.index[0].start or 0: shard.data
      for shard in array.addressable_shards
      if shard.replica_id == 0
  }
  return np.concatenate([none, *(shards[start] for start in sorted(shards))])
