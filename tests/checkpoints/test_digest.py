"""The digest does not see the sharding, and sees everything else."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from irepa_jax.checkpoints import digest

DTYPES = [
    jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int32,
    jnp.uint32, jnp.int16, jnp.int8, jnp.uint8, jnp.bool_,
]  # fmt: skip


def values(dtype, shape=(16, 8)):
  draw = np.random.default_rng(0).normal(size=shape) * 3
  return jnp.asarray(draw > 0 if dtype == jnp.bool_ else draw).astype(dtype)


def by_numpy(x):
  """The definition, element by element, in Python integers."""
  x = np.asarray(x)
  if x.dtype == np.bool_:
    x = x.astype(np.uint8)
  bits = x.reshape(-1).view(f'u{x.dtype.itemsize}')
  sums = []
  for seed in digest.SEEDS:
    total = 0
    for index, b in enumerate(bits.tolist()):
      place = mix((index * digest.WEYL + seed) % 2**32)
      total += mix(b ^ place)
    sums.append(f'{total % 2**32:08x}')
  return ''.join(sums)


def mix(h):
  h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
  h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
  return h ^ h >> 16


@pytest.mark.parametrize('dtype', DTYPES)
def test_digest_is_its_definition(dtype):
  x = values(dtype)
  assert digest.digest({'a': {'b': x}}) == {'a/b': by_numpy(x)}


def test_murmur_finaliser_is_the_published_one():
  # Values of fmix32 in the reference implementation of MurmurHash3.
  assert [mix(1), mix(0xFFFFFFFF)] == [0x514E28B7, 0x81F16F39]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.bool_])
@pytest.mark.parametrize('shape', [(8, 1), (1, 8), (2, 4)])
def test_sharding_does_not_matter(shape, dtype):
  x = values(dtype)
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()).reshape(shape), ('a', 'b')
  )
  alone = digest.digest(x)
  for spec in [('a', 'b'), ('b', 'a'), (None, 'b'), (('a', 'b'),), ()]:
    where = NamedSharding(mesh, PartitionSpec(*spec))
    assert digest.digest(jax.device_put(x, where)) == alone


def test_any_change_is_seen():
  x = np.array(values(jnp.float32))
  before = digest.digest(x)
  for place in np.ndindex(x.shape):
    changed = x.copy()
    changed.view(np.uint32)[place] ^= 1 << (sum(place) % 32)
    assert digest.digest(changed) != before
  assert digest.digest(x[::-1].copy()) != before
  assert digest.digest(np.zeros(3)) != digest.digest(-np.zeros(3))


@pytest.mark.parametrize('shape', [(), (0, 4), (1,), (3, 1, 5)])
def test_any_shape_has_a_digest(shape):
  x = np.ones(shape, np.float32)
  assert digest.digest({'x': x}) == {'x': by_numpy(x)}


def test_a_sharded_leaf_is_neither_gathered_nor_copied():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  where = NamedSharding(mesh, PartitionSpec('data'))
  x = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=where)
  whole = NamedSharding(mesh, PartitionSpec())
  compiled = jax.jit(digest._sums, out_shardings=whole).lower(x).compile()
  assert 'all-gather' not in compiled.as_text()
  shard = x.size * 4 // 8  # CPU keeps two arrays of a shard; others fuse them
  assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * shard


def test_a_state_of_many_leaves_on_many_devices_ends():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  where = NamedSharding(mesh, PartitionSpec('data'))
  x = jax.device_put(values(jnp.float32), where)
  assert set(digest.digest([x] * 200).values()) == {by_numpy(x)}
