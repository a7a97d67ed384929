"""Shows the processes and devices of a job, and adds a number on all of them.

  launch/tpu_pod.sh check --name=pod --zone=us-east5-b
  launch/processes.sh --processes=2 --module=irepa_jax.tools.devices

Run it on a new pod before a long job: a host that is missing, a chip that does
not answer or code that differs shows within a minute, with its name.
"""

import socket

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import cli
from irepa_jax.distributed import processes
from irepa_jax.distributed import start


def main(args):
  del args
  start.join()
  processes.agree({})
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
  return 0 if right else 1


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


if __name__ == '__main__':
  cli.run(main)
