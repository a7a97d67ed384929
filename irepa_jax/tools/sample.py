"""Samples images from a run: the ADM npz, a grid, and a folder of PNGs.

  python -m irepa_jax.tools.sample --workdir=runs/xl --count=50000 \\
      --out=runs/xl/samples/400k

writes OUT.npz (arr_0 uint8 [n h w 3], labels in arr_1), OUT.png (the first
images) and OUT.json (every setting that moves a score). Settings that are not
given are those of the run. Image i depends on the seed and on i alone, so any
number of devices gives the same images; a killed command continues where it
stopped.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import start
from irepa_jax.jobs import sample

# Fields of the run's configuration that a flag replaces.
SETTINGS = {
    'seed': (flags.DEFINE_integer, 'Of noise and labels.'),
    'labels': (flags.DEFINE_string, 'random or balanced.'),
    'sampler': (flags.DEFINE_string, 'euler, heun, euler_maruyama.'),
    'sample_steps': (flags.DEFINE_integer, 'Steps of the sampler.'),
    'guidance': (flags.DEFINE_float, 'Scale; 1 is none.'),
    'guidance_low': (flags.DEFINE_float, 'Guided from this t'),
    'guidance_high': (flags.DEFINE_float, 'to this one.'),
    'guidance_ends': (flags.DEFINE_string, 'closed (SiT) or open (JiT).'),
    'quantise': (flags.DEFINE_string, 'truncate or round.'),
    'dtype': (flags.DEFINE_string, 'float32 or bfloat16.'),
    'autoencoder_weights': (flags.DEFINE_string, 'Path or hub id.'),
}
OPTIONS = {
    'out': (flags.DEFINE_string, '', 'OUT.npz, OUT.png and OUT.json.'),
    'step': (flags.DEFINE_integer, None, 'Checkpoint; default the newest.'),
    'ema': (flags.DEFINE_integer, 0, 'Which moving average, from 0.'),
    'count': (flags.DEFINE_integer, 50_000, 'Images.'),
    'batch_size': (flags.DEFINE_integer, 256, 'Images at a time, in all.'),
    'grid': (flags.DEFINE_integer, 64, 'Images of the grid.'),
    'overwrite': (
        flags.DEFINE_bool,
        False,
        'Replace finished images of other settings.',
    ),
    'png_folder': (flags.DEFINE_string, '', 'Also one PNG per image.'),
}


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_string('workdir', '', 'Run directory.')
  for name, (define, default, text) in OPTIONS.items():
    define(name, default, text)
  for name, (define, text) in SETTINGS.items():
    define(name, None, text + ' Default: that of the run.')


def main(args):
  """Runs the command; returns its exit status."""
  values = flags.FLAGS.flag_values_dict()
  if args[1:] or not values['workdir']:
    raise errors.UsageError('--workdir=RUN is required; see --help')
  start.join()
  options = {name: values[name] for name in OPTIONS}
  settings = {k: values[k] for k in SETTINGS if values[k] is not None}
  return sample.sample(values['workdir'], **options, **settings)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
