"""Shows the processes and devices of a job, and adds a number on all of them.

  launch/tpu_pod.sh check --name=pod --zone=us-east5-b
  launch/processes.sh --processes=2 --module=irepa_jax.tools.devices

Run it on a new pod before a long job: a host that is missing, a chip that does
not answer or code that differs shows within a minute, with its name.
"""

from irepa_jax import cli
from irepa_jax.distributed import processes
from irepa_jax.distributed import start
from irepa_jax.jobs import devices


def main(args):
  """Runs the command; returns its exit status."""
  del args
  start.join()
  processes.agree({})
  return 0 if devices.report() else 1


if __name__ == '__main__':
  cli.run(main)
