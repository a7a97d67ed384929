"""The processes and devices of a job, and a number added on all of them."""

import socket

import jax
import jax.numpy as jnp
import numpy as np


def report():
  """Prints one line about this process; returns whether the sum is right."""
  local = jax.local_devices()
  total, expected = device_sum(), len(jax.devices())
  right = total == expected * (expected - 1) / 2
  print(
      f'process {jax.process_index()} of {jax.process_count()} on'
      f' {socket.gethostname()}: {len(local)} of {expected} devices'
      f' ({local[0].device_kind}), sum over all {total:g}:'
      f' {"right" if right else "WRONG"}',
      flush=True,
  )
  return right


def device_sum():
  """Returns 0 + 1 + ... + (n - 1), one number from each device of the job."""
  count = len(jax.devices())
  mesh = jax.make_mesh(
      (count,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec
  numbers = jax.make_array_from_callback(
      (count,),
      jax.sharding.NamedSharding(mesh, spec('data')),
      lambda index: np.arange(count, dtype=np.float32)[index],
  )
  everywhere = jax.sharding.NamedSharding(mesh, spec())
  return float(jax.jit(jnp.sum, out_shardings=everywhere)(numbers))
