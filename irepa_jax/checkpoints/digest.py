"""A digest of a tree of arrays that does not depend on how it is sharded.

Every element is hashed together with its position in the global array, and
the hashes are summed modulo 2^32, twice with other constants. Integer sums
are exact and know no order, so the digest of a leaf is the same on one device
as on a pod, while any changed, moved or exchanged element alters it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Increment of the golden ratio (Weyl sequence), spreads neighbouring indices.
WEYL = 0x9E3779B9
SEEDS = (0x243F6A88, 0x85A308D3)  # first digits of pi: any two will do
# Leaves whose sums are under way at a time. Several simulated devices of a CPU
# wait for one another for ever beyond 32 programs that communicate.
AT_A_TIME = 16


def digest(tree):
  """Returns {leaf path: 16 hexadecimal digits}; computed where the data is.

  Every process that holds a part of the arrays has to call it. Leaves are
  arrays of booleans, integers or floats of any width (not typed PRNG keys).
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = []
  for first in range(0, len(leaves), AT_A_TIME):
    some = leaves[first : first + AT_A_TIME]
    sums += jax.device_get([_leaf(x) for _, x in some])
  return {
      leaf_path(path): f'{int(a):08x}{int(b):08x}'
      for (path, _), (a, b) in zip(leaves, sums, strict=True)
  }


def leaf_path(path):
  """Returns a key path as text: ema/0/model/blocks_3/attn/qkv/kernel."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _leaf(x):
  """Dispatches the sums of one leaf, replicated over the devices of x."""
  sharding = getattr(x, 'sharding', None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    replicated = jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec()
    )
    return _jit_sums(replicated)(x)
  return _jit_sums(None)(x)


_JITTED = {}


def _jit_sums(out):
  if out not in _JITTED:
    _JITTED[out] = jax.jit(_sums, out_shardings=out)
  return _JITTED[out]


def _sums(x):
  """Returns two uint32 sums over (bits, index) of the elements of x."""
  bits = _bits(x)
  index = _global_index(bits.shape)
  return tuple(
      jnp.sum(
          _mix(bits ^ _mix(index * jnp.uint32(WEYL) + jnp.uint32(seed))),
          dtype=jnp.uint32,
      )
      for seed in SEEDS
  )


def _bits(x):
  """Returns the bits of x as uint32; 64-bit elements give a last axis of 2."""
  x = jnp.asarray(x)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  width = min(x.dtype.itemsize, 4)
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _global_index(shape):
  """Returns the row-major index of every element, modulo 2^32."""
  index = jnp.zeros(shape, jnp.uint32)
  for axis in range(len(shape)):
    stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
  return index


def _mix(h):
  """The finaliser of MurmurHash3 (Appleby): a bijection of 32 bits."""
  h ^= h >> np.uint32(16)
  h *= np.uint32(0x85EBCA6B)
  h ^= h >> np.uint32(13)
  h *= np.uint32(0xC2B2AE35)
  return h ^ (h >> np.uint32(16))
