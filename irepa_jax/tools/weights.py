"""Weights in and out: what a file holds, official checkpoints, encoders.

  python -m irepa_jax.tools.weights show FILE
  python -m irepa_jax.tools.weights import FILE --config=configs/sit_xl.py:irepa \\
      --workdir=runs/imported
  python -m irepa_jax.tools.weights export --workdir=runs/xl --out=xl.pt
  python -m irepa_jax.tools.weights vae --workdir=runs/repa_e --out=vae
  python -m irepa_jax.tools.weights encoder all [--markdown]

`import` makes a run directory of an official iREPA, REPA, REPA-E, SiT, JiT or
MeanFlow checkpoint: it can be sampled, and continued by irepa_jax.main. `export`
writes the official layout: model, ema, args and steps to .pt (of JiT both
averages), the average alone to .safetensors. `vae` writes the autoencoder of an
end-to-end run: OUT.pt has the official names, any other OUT is a folder in the
layout of diffusers.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.jobs import official
from irepa_jax.jobs import vae_files
from irepa_jax.weights import listing


def define_flags():
  """Defines the flags of the command line."""
  cli.define_config()
  flags.DEFINE_string('workdir', '', 'Run directory.')
  flags.DEFINE_string('out', '', 'File that export writes.')
  flags.DEFINE_integer('ema', 0, 'Average that export writes, from 0.')
  flags.DEFINE_integer(
      'step', None, 'Checkpoint of export; default the newest.'
  )
  flags.DEFINE_bool('markdown', False, 'Print encoders for a web page.')
  flags.DEFINE_string(
      'latent_statistics', '', 'Official latents-stats file for import.'
  )


def main(args):
  """Runs one subcommand; returns the exit status."""
  v = flags.FLAGS
  match args[1:]:
    case ['show', file]:
      print('\n'.join(listing.describe(file)))
    case ['import', file] if v.config and v.workdir:
      official.import_(
          file, v.config, v.workdir, latent_statistics=v.latent_statistics
      )
    case ['export'] if v.workdir and v.out:
      official.export(v.workdir, v.out, ema=v.ema, step=v.step)
    case ['vae'] if v.workdir and v.out:
      vae_files.export(v.workdir, v.out, ema=v.ema, step=v.step)
    case ['encoder', name]:
      lines = encoders.table_markdown if v.markdown else encoders.table_text
      print('\n'.join(lines(None if name == 'all' else [name])))
    case _:
      raise errors.UsageError(
          'usage: weights show FILE | import FILE --config=FILE --workdir=DIR |'
          ' export --workdir=RUN --out=FILE | vae --workdir=RUN --out=FILE |'
          ' encoder NAME; see --help'
      )
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
