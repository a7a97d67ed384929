"""Samples images from a run: the ADM npz, a grid, and a folder of PNGs.

  python -m irepa_jax.tools.sample --workdir=runs/xl --count=50000 \
      --out=runs/xl/samples/400k

writes OUT.npz (arr_0 uint8 [n h w 3], labels in arr_1), OUT.png (the first
images) and OUT.json (every setting that moves a score). Settings that are not
given are those of the run. Image i depends on the seed and on i alone, so any
number of devices gives the same images; a killed command continues where it
stopped.
"""

import json
from typing import Any
from typing import NamedTuple

from absl import flags
from etils import epath
import numpy as np
import tqdm

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.distributed import start
from irepa_jax.evals import generate
from irepa_jax.evals import parts
from irepa_jax.evals import pictures
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup


def sample(
    workdir,
    *,
    out='',
    step=None,
    ema=0,
    count=50_000,
    batch_size=256,
    grid=64,
    png_folder='',
    **settings,
):
  """Samples a run; returns the exit status, 75 when told to stop.

  Args:
    workdir: of the run.
    out: OUT.npz and so on; '' is below the run directory.
    step: of the checkpoint; None is the newest.
    ema: which moving average, from 0.
    count: images.
    batch_size: images at a time on all devices.
    grid: images in OUT.png.
    png_folder: one file per image; '' is none.
    **settings: fields of the configuration, see SETTINGS.
  """
  if count < 1:
    raise errors.UsageError(f'count is {count}; 1 or more')
  run = saved_run.open_(workdir, **settings)
  mesh = sharding.make_mesh()
  loaded = load(run, mesh, ema=ema, step=step)
  told = described(run, loaded)
  out = str(out).removesuffix('.npz')
  out = out or f'{run.workdir}/samples/{told["step"]:07d}-{count}'
  done = fill(
      f'{out}.parts',
      count,
      told,
      saved_run.renderer(run, loaded.meta, mesh),
      loaded.params,
      batch_size=batch_size,
      mesh=mesh,
  )
  if not done:
    return preemption.EXIT_STATUS
  finish(out, count, told, grid, png_folder)
  return 0


class Loaded(NamedTuple):
  """The weights of a run on a mesh.

  params: of setup.sampling_weights; meta: of the checkpoint; ema: which moving
  average.
  """

  params: Any
  meta: dict[str, Any]
  ema: int


def load(run, mesh, *, ema=0, step=None) -> Loaded:
  """Reads one average of a run and its autoencoder."""
  params, meta = saved_run.load(run, mesh, ema=ema, step=step)
  decoder = saved_run.load_decoder(run, mesh, meta)
  return Loaded(setup.sampling_weights(run.built, params, decoder), meta, ema)


def described(run, loaded):
  """Returns every setting that moves a number, for the JSON and for parts."""
  return saved_run.described(
      run.config,
      run.workdir,
      step=loaded.meta['step'],
      ema=loaded.ema,
      autoencoder_sha256=loaded.meta['autoencoder_sha256'],
  )


def fill(folder, count, settings, render, params, *, batch_size, mesh):
  """Makes the images that are not in the folder yet; False if told to stop.

  render: of saved_run.renderer, or one that makes features of them.
  """
  unit = mesh.shape[sharding.DATA]
  batch_size = -(-batch_size // unit) * unit
  parts.claim(folder, settings)
  numbers = parts.missing(folder, count)
  hidden = not processes.is_first()
  stop = preemption.Preemption()
  with tqdm.tqdm(
      total=count,
      initial=count - len(numbers),
      unit='img',
      disable=hidden,
  ) as bar:
    for part in generate.generate(
        render,
        params,
        numbers,
        batch_size=batch_size,
        mesh=mesh,
        poll=lambda: stop.reached(settings['step']),
    ):
      parts.write(folder, part)
      bar.update(min(batch_size, count - bar.n))
  done = not stop.reached(settings['step'])
  stop.close()
  return done


def finish(out, count, settings, grid, png_folder):
  """Merges the parts into the npz and writes what lies beside it."""
  folder = f'{out}.parts'
  parts.merge(folder, count, f'{out}.npz')
  if processes.is_first():
    shown = parts.read(folder, min(grid, count))
    first = [part.images for part in shown]
    pictures.write(f'{out}.png', pictures.grid(np.concatenate(first)))
    if png_folder:
      pictures.write_folder(png_folder, parts.read(folder, count))
    told = settings | {'count': count}
    epath.Path(f'{out}.json').write_text(json.dumps(told, indent=1))
    print(f'{out}.npz: {count} images')
  parts.remove(folder)


# Fields of the run's configuration that a flag replaces.
SETTINGS = {
    'seed': (flags.DEFINE_integer, 'Of noise and labels.'),
    'labels': (flags.DEFINE_string, 'random or balanced.'),
    'sampler': (flags.DEFINE_string, 'euler, heun, euler_maruyama.'),
    'sample_steps': (flags.DEFINE_integer, 'Steps of the sampler.'),
    'guidance': (flags.DEFINE_float, 'Scale; 1 is none.'),
    'guidance_low': (flags.DEFINE_float, 'Guided from this t'),
    'guidance_high': (flags.DEFINE_float, 'to this one.'),
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
  return sample(values['workdir'], **options, **settings)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
