"""Meshes, and which axis of the mesh splits which axis of an array.

A mesh has three axes. `data` splits the batch and, under FSDP, every large
parameter with its optimiser state and moving averages; `model` splits matrices
as tensor parallelism does (Megatron, arXiv 1909.08053): the first product of a
block by its outputs, the second by its inputs. `replica` splits the batch
alone: each group of devices that share a fast network (a TPU slice, a node or
an NVLink domain) holds all weights, so that between groups only gradients
travel (hybrid sharding, arXiv 2304.11277 section 3.2.2). A spec is found from
the path of a parameter and its shape alone, so optimiser state, which repeats
those paths, is split in the same way.
"""

import itertools
import math
import re

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from irepa_jax import errors

REPLICA, DATA, MODEL = AXES = 'replica', 'data', 'model'
ROWS = REPLICA, DATA  # what splits the rows of a batch
# Arrays with fewer elements stay whole: gathering them costs more than memory.
LARGE = 2**14
# Kernels of patch embeddings stay whole as well: they are small, and a product
# of so few rows would be computed in a loop over shards instead. So do position
# tables, which encoders add in float32.
WHOLE = re.compile(r'(^|/)(patch_embed|x_embedder)/|(^|/)pos_embed$')
# Tensor parallelism by path; the number is the axis that `model` splits.
MODEL_AXIS = (
    (r'attn/qkv/kernel$', 1),
    (r'attn/qkv/bias$', 0),
    (r'attn/proj/kernel$', 0),
    (r'mlp/(fc1|w12)/kernel$', 1),
    (r'mlp/(fc1|w12)/bias$', 0),
    (r'mlp/(fc2|w3)/kernel$', 0),
)


def make_mesh(
    data=-1, model=1, replica=-1, *, devices=None, allow_subset=False
):
  """Arranges devices as (replica, data, model), neighbours on the last axes.

  Args:
    data: parts of the batch, and of the weights under FSDP; -1: what the
      others leave.
    model: parts of a matrix; always within a group of devices.
    replica: copies of the weights; -1: one for each group. 1 splits the
      weights over all groups.
    devices: all of the job, by default.
    allow_subset: some devices may stay idle.

  Raises UsageError when the mesh needs more devices than there are, leaves
  some idle without `allow_subset`, or does not fit the groups.
  """
  devices = jax.devices() if devices is None else devices
  groups = _groups(devices)
  replica = len(groups) if replica == -1 else replica
  data = len(devices) // (replica * model) if data == -1 else data
  shape = replica, data, model
  _check_size(shape, groups, allow_subset)
  across = math.gcd(replica, len(groups))  # replicas; the rest is data
  outer = across, len(groups) // across, 1
  inner = tuple(n // m for n, m in zip(shape, outer, strict=True))
  if math.prod(inner) * len(groups) != math.prod(shape):
    raise errors.UsageError(
        f'a mesh of {_words(shape)} does not fit {_count(groups)}; mesh_replica'
        ' has to be a multiple or a divisor of the number of groups, mesh_model'
        ' a divisor of the devices of one'
    )
  blocks = [_arranged(group, inner) for group in groups]
  blocks = np.reshape(np.stack(blocks), outer + inner)
  laid = np.reshape(np.transpose(blocks, (0, 3, 1, 4, 2, 5)), shape)
  return jax.sharding.Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def group(device):
  """Returns which group a device belongs to: within one the network is fast.

  JAX numbers TPU slices and, on GPUs, nodes or NVLink domains in this way.
  """
  return getattr(device, 'slice_index', None) or 0


def _groups(devices):
  """Returns the devices of each group, as many of each."""
  parts = itertools.groupby(sorted(devices, key=group), key=group)
  groups = [list(part) for _, part in parts]
  least = min(map(len, groups))
  if any(len(part) > least for part in groups):
    raise errors.UsageError(
        f'groups of {", ".join(str(len(part)) for part in groups)} devices'
        ' (slices, nodes): they have to be equal'
    )
  return groups


def _arranged(devices, shape):
  """Returns the devices of one group in the order of its network."""
  return jax.make_mesh(
      shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  ).devices


def _check_size(shape, groups, allow_subset):
  """Raises UsageError for a mesh of more or fewer devices than there are."""
  size, count = math.prod(shape), sum(map(len, groups))
  if size < 1 or size > count:
    raise errors.UsageError(
        f'a mesh of {_words(shape)} needs {max(size, *shape)} devices, there'
        f' are {_count(groups)} ({groups[0][0].device_kind}); mesh_data -1 x'
        ' mesh_model 1 takes them all'
    )
  if size < count and not allow_subset:
    raise errors.UsageError(
        f'a mesh of {_words(shape)} leaves {count - size} of {count} devices'
        ' idle; set mesh_data=-1 or allow_subset=true'
    )


def _words(shape):
  """Returns 'data 4 x model 2', with the replicas where there are several."""
  named = zip(AXES, shape, strict=True)
  return ' x '.join(f'{k} {n}' for k, n in named if k != REPLICA or n != 1)


def _count(groups):
  """Returns '8', or '8 in 2 groups'."""
  count = sum(map(len, groups))
  return f'{count} in {len(groups)} groups' if len(groups) > 1 else str(count)


def row_parts(mesh):
  """Returns into how many parts a mesh splits the rows of a batch."""
  return mesh.shape[REPLICA] * mesh.shape[DATA]


def check_batch(batch_size, mesh, accumulate=1):
  """Raises UsageError unless every device gets whole rows of a microbatch."""
  unit = row_parts(mesh) * accumulate
  if batch_size < 1 or batch_size % unit:
    near = sorted(
        {max(unit, batch_size // unit * unit), (batch_size // unit + 1) * unit}
    )
    raise errors.UsageError(
        f'batch_size={batch_size} is not divisible by {unit} (data'
        f' {row_parts(mesh)} x accumulate {accumulate}); nearest:'
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
  large = math.prod(shape) >= LARGE and not WHOLE.search(name)
  if fsdp and mesh.shape[DATA] > 1 and large:
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
  """Returns the sharding of a batch: rows over ROWS, the rest whole."""
  return NamedSharding(mesh, P(ROWS))


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
