"""Meshes, and which axis of the mesh splits which axis of an array.

A mesh has two axes. `data` splits the batch and, under FSDP, every large
parameter with its optimiser state and moving averages; `model` splits matrices
as tensor parallelism does (Megatron, arXiv 1909.08053): the first product of a
block by its outputs, the second by its inputs. A spec is found from the path
of a parameter and its shape alone, so optimiser state, which repeats those
paths, is split in the same way.
"""

import math
import re

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from irepa_jax import errors

DATA, MODEL = 'data', 'model'
# Arrays with fewer elements stay whole: gathering them costs more than memory.
LARGE = 2**14
# Tensor parallelism by path; the number is the axis that `model` splits.
MODEL_AXIS = (
    (r'attn/qkv/kernel$', 1),
    (r'attn/qkv/bias$', 0),
    (r'attn/proj/kernel$', 0),
    (r'mlp/(fc1|w12)/kernel$', 1),
    (r'mlp/(fc1|w12)/bias$', 0),
    (r'mlp/(fc2|w3)/kernel$', 0),
)


def make_mesh(data=-1, model=1, *, devices=None, allow_subset=False):
  """Arranges devices as (data, model); data=-1 takes what model leaves.

  Raises UsageError when the mesh needs more devices than there are, or leaves
  some idle without `allow_subset`.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  data = count // model if data == -1 else data
  size = data * model
  if size < 1 or size > count:
    raise errors.UsageError(
        f'a mesh of data {data} x model {model} needs {max(size, model)}'
        f' devices, there are {count} ({devices[0].device_kind}); data -1 x'
        f' model 1 takes them all'
    )
  if size < count and not allow_subset:
    raise errors.UsageError(
        f'a mesh of data {data} x model {model} leaves'
        f' {count - size} of {count} devices idle; set mesh_data=-1 or'
        ' allow_subset=true'
    )
  return jax.make_mesh(
      (data, model),
      (DATA, MODEL),
      axis_types=(AxisType.Auto, AxisType.Auto),
      devices=devices[:size],
  )


def check_batch(batch_size, mesh, accumulate=1):
  """Raises UsageError unless every device gets whole rows of a microbatch."""
  unit = mesh.shape[DATA] * accumulate
  if batch_size < 1 or batch_size % unit:
    near = sorted(
        {max(unit, batch_size // unit * unit), (batch_size // unit + 1) * unit}
    )
    raise errors.UsageError(
        f'batch_size={batch_size} is not divisible by {unit} (data'
        f' {mesh.shape[DATA]} x accumulate {accumulate}); nearest:'
        f' {", ".join(map(str, near))}'
    )


def path_name(path):
  """Joins the keys of a tree path with slashes: blocks_0/attn/qkv/kernel."""
  return '/'.join(_key(entry) for entry in path)


def param_spec(name, shape, mesh, *, fsdp=True):
  """Returns the PartitionSpec of one array from its path and shape."""
  axes = [None] * len(shape)
  if mesh.shape[MODEL] > 1:
    for pattern, axis in MODEL_AXIS:
      if re.search(pattern, name) and shape[axis] % mesh.shape[MODEL] == 0:
        axes[axis] = MODEL
  if fsdp and mesh.shape[DATA] > 1 and math.prod(shape) >= LARGE:
    free = [i for i, taken in enumerate(axes) if taken is None]
    whole = [i for i in free if shape[i] % mesh.shape[DATA] == 0]
    if whole:
      axes[max(whole, key=lambda i: shape[i])] = DATA
  return P(*axes)


def tree_shardings(tree, mesh, *, fsdp=True):
  """Returns a NamedSharding for every leaf of a state or parameter tree."""
  spec = lambda path, leaf: NamedSharding(
      mesh, param_spec(path_name(path), np.shape(leaf), mesh, fsdp=fsdp)
  )
  return jax.tree_util.tree_map_with_path(spec, tree)


def batch_sharding(mesh):
  """Returns the sharding of a batch: rows over `data`, the rest whole."""
  return NamedSharding(mesh, P(DATA))


def replicated(mesh):
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def gather(mesh):
  """Returns f(weights) that gathers FSDP shards and keeps tensor parallelism.

  Applied to the weights of one block in the compute dtype, just before their
  use, it makes XLA move bfloat16 weights and never activations.
  """
  return lambda weights: jax.lax.with_sharding_constraint(
      weights, tree_shardings(weights, mesh, fsdp=False)
  )


def constrain(mesh):
  """Returns f(activations) that pins them to the split of the batch."""
  return lambda x: jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def placed(shapes, shardings):
  """Returns shapes that carry their shardings, for lowering and restoring."""
  put = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(put, shapes, shardings)


def of(shapes):
  """Returns the shardings that a tree of placed shapes carries."""
  return jax.tree.map(lambda x: x.sharding, shapes)


def put(tree, shardings):
  """Places host arrays, the same on every process, with their shardings."""
  place = lambda x, s: jax.make_array_from_callback(
      np.shape(x), s, lambda index: np.asarray(x)[index]
  )
  return jax.tree.map(place, tree, shardings)


def _key(entry):
  for name in ('key', 'name', 'idx'):
    if hasattr(entry, name):
      return str(getattr(entry, name))
  return str(entry)
