"""Says what a run needs before it is launched: memory, collectives, FLOPs.

  python -m irepa_jax.tools.plan --config=configs/sit_xl.py
  python -m irepa_jax.tools.plan --config=configs/sit_xl.py --topology=v5e:2x4
  python -m irepa_jax.tools.plan --config=configs/sit_xl.py --topology=h200

Without a topology it counts the bytes of the state on the devices at hand.
With one it compiles the whole training step for that TPU slice or those GPUs,
without the hardware, by the real compiler (`pip install libtpu`, or the extra
[cuda]; minutes of CPU): what does not fit fails here instead of on the pod. For
a GPU the memory is the compiler's plan, without its search for fast kernels.
The collectives are counted by type and dtype in the compiled program: with
FSDP, weights should be gathered in bfloat16 and activations not at all.

With `--slices=2` the topology is that of two such slices (for GPUs: nodes), and
the collectives that leave a slice are listed apart: gradients, and no weights.
"""

import json

from absl import flags
import jax

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.jobs import plan


def define_flags():
  """Defines the flags of the command line."""
  cli.define_config()
  flags.DEFINE_string(
      'topology',
      '',
      'What to compile for: v5e:2x4, v6e:2x4, v5p:2x2x1, tpu7x:2x2x1, h200,'
      ' h200:8.',
  )
  flags.DEFINE_integer(
      'slices', 1, 'How many of it, joined over a slower network.', 1
  )


def main(args):
  """Prints one JSON object; returns the exit status."""
  v = flags.FLAGS
  if args[1:] or v.config is None:
    raise errors.UsageError('--config=FILE is required; see --help')
  if v.slices > 1 and not v.topology:
    raise errors.UsageError('--slices needs --topology, that of one slice')
  # A program for devices that are not here cannot be read back.
  jax.config.update('jax_enable_compilation_cache', False)
  print(json.dumps(plan.plan(v.config, v.topology, v.slices), indent=2))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
