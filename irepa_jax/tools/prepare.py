"""Writes a data set: sharded records of latents, images, labels, features.

  python -m irepa_jax.tools.prepare --source=folder:/data/imagenet/train \\
      --out=data/imagenet256 --image_size=256 --flip

Sources: folder:PATH, tfds:NAME[:SPLIT], arrow:PATH[:SPLIT],
latents:PATH[:SPLIT] (the official release), digits. The same command continues
after a kill; several processes on one shared folder divide the shards.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import start
from irepa_jax.jobs import prepare
from irepa_jax.jobs import prepare_options


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_string('source', None, 'Where the images come from.')
  flags.DEFINE_string('out', None, 'Folder of the data set.')
  flags.mark_flags_as_required(['source', 'out'])
  cli.define_options(prepare_options.Options)


def main(args):
  """Runs the command."""
  if args[1:]:
    raise errors.UsageError(f'unexpected argument {args[1]!r}; see --help')
  options = cli.options(prepare_options.Options)
  start.join()
  prepare.prepare(flags.FLAGS.source, flags.FLAGS.out, **options)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
