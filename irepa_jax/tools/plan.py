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

For a TPU it prints, too, how long the compiler expects a step to take, with the
largest items and the line of our code they are from. That is an estimate: it
ranks variants, and counts neither kernels that the compiler does not know
("unknown") nor what runs at the same time. `--price` is of one chip for an hour.

  python -m irepa_jax.tools.plan --topology=v5e:2x4 --compare A B

prints two plans side by side: of two configurations, or of two checkouts of
this repository with the same --config. Overrides --config.field=value hold for
both; they need a --config=FILE before them, which configurations A and B replace.
"""

import json
import sys

from absl import flags
import jax

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.jobs import plan
from irepa_jax.jobs import plan_table


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
  flags.DEFINE_float('price', 0.0, 'Of one chip for an hour, any currency.', 0)
  flags.DEFINE_enum('format', 'json', ['json', 'table'], 'Of what is printed.')
  flags.DEFINE_bool('compare', False, 'Plan A and B, named after the flags.')


def main(args):
  """Prints one JSON object or table; returns the exit status."""
  v = flags.FLAGS
  if v.slices > 1 and not v.topology:
    raise errors.UsageError('--slices needs --topology, that of one slice')
  if v.compare:
    return compare(args)
  if args[1:] or v.config is None:
    raise errors.UsageError('--config=FILE is required; see --help')
  # A program for devices that are not here cannot be read back.
  jax.config.update('jax_enable_compilation_cache', False)
  report = plan.plan(v.config, v.topology, v.slices, v.price)
  print(
      plan_table.table(report)
      if v.format == 'table'
      else json.dumps(report, indent=2)
  )
  return 0


def compare(args):
  """Prints two plans side by side; returns the exit status."""
  names = args[1:]
  if len(names) != 2:
    raise errors.UsageError(
        f'--compare takes two configurations or checkouts, not {len(names)}'
    )
  words = sys.argv[1:]
  if '--config' in words or '--format' in words:
    raise errors.UsageError('--compare wants --config=FILE, --format=table')
  config = next((w for w in words if w.startswith('--config=')), '')
  kept = [
      word
      for word in words
      if word not in names
      and not word.startswith(('--compare', '--format', '--config='))
  ]
  reports = [
      plan_table.elsewhere(name, config.removeprefix('--config='), kept)
      for name in names
  ]
  print(
      plan_table.side_by_side(names, reports)
      if flags.FLAGS.format == 'table'
      else json.dumps(dict(zip(names, reports, strict=True)), indent=2)
  )
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
