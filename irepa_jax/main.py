"""Trains a diffusion transformer with representation alignment.

  python -m irepa_jax.main --config=configs/sit_xl.py:irepa --workdir=runs/xl

The part behind the colon is the alignment preset: none, repa, irepa,
irepa_released. Any field of the configuration is set by --config.field=value.
The same command continues a run from its newest whole checkpoint. It ends with
0 when the run is complete, 75 when it was preempted after saving (start it
again), 2 for a usage error, 3 for the data or weights, 4 for a checkpoint.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.names.experiments import base

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string(
    'workdir',
    '',
    'Run directory: checkpoints, metrics, samples; local or gs://.',
)
CHECK = flags.DEFINE_bool(
    'check', False, 'Only check the configuration, data, weights and devices.'
)
PRINT = flags.DEFINE_bool(
    'print_config',
    False,
    'Print every field, whether a run that is continued may change it (free) or'
    ' not (fixed), and stop.',
)


def main(args):
  """Runs the command; returns its exit status."""
  if args[1:]:
    raise errors.UsageError(f'unexpected argument {args[1]!r}; see --help')
  if CONFIG.value is None:
    raise errors.UsageError(
        '--config is required, for example --config=configs/quickstart.py'
    )
  if PRINT.value:
    print('\n'.join(map(_described, sorted(CONFIG.value.items()))))
    return 0
  if not WORKDIR.value:
    raise errors.UsageError(
        '--workdir is required for training (checkpoints, metrics)'
    )
  # Not before: these import JAX, which takes a second and no interrupt.
  from irepa_jax.distributed import host_memory
  from irepa_jax.distributed import start

  host_memory.keep_freed()
  start.join()
  # After jax.distributed: it imports users of jax.
  from irepa_jax.jobs import train

  return train.run(CONFIG.value, WORKDIR.value, check_only=CHECK.value)


def _described(item):
  """Returns one field as text, with its meaning and whether it may change."""
  name, value = item
  field = base.FIELDS.get(name) or base.fixed(value, 'not of configs/base.py')
  text = f'{name} = {value!r}'
  return f'{text:40} # {"free" if field.free else "fixed"}; {field.meaning}'


if __name__ == '__main__':
  cli.run(main)
