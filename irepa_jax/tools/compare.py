"""Puts several runs side by side: a table of their scores and their curves.

  python -m irepa_jax.tools.compare runs/none runs/repa runs/irepa --out=compare

Runs that differ only in their seed share a row and a colour. Writes OUT.md and
OUT.png, and prints the table.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.jobs import compare


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_list(
      'metrics',
      ['eval/accuracy', 'eval/frechet'],
      'Metrics of the table and the plot, as named in metrics.jsonl.',
  )
  flags.DEFINE_list('steps', [], 'Steps of the table; default the last.')
  flags.DEFINE_string('out', 'compare', 'Writes OUT.md and OUT.png.')


def main(args):
  """Prints the table; returns the exit status."""
  v = flags.FLAGS
  if len(args) < 2:
    raise errors.UsageError('name at least one run directory')
  if not all(step.isdigit() for step in v.steps):
    raise errors.UsageError(f'--steps={",".join(v.steps)}: whole numbers')
  print(
      compare.compare(
          args[1:], v.out, metrics=v.metrics, steps=list(map(int, v.steps))
      )
  )
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
