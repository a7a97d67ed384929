"""Samples images from a run: the ADM npz, a grid, and a folder of PNGs.

Image i depends on the seed and on i alone, so any number of devices gives the
same images; a killed job continues where it stopped.
"""

import json
from typing import Any
from typing import NamedTuple

from etils import epath
import numpy as np
import tqdm

from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.evals import generate
from irepa_jax.evals import parts
from irepa_jax.evals import pictures
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup
from irepa_jax.names import places


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
    overwrite=False,
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
    overwrite: replace finished images of other settings.
    **settings: fields of the configuration that replace those of the run.
  """
  if count < 1:
    raise errors.UsageError(f'count is {count}; 1 or more')
  run = saved_run.open_(workdir, **settings)
  out = str(out).removesuffix('.npz')
  processes.on_first(lambda: _try_outputs(out, run, png_folder))
  mesh = sharding.make_mesh()
  loaded = load(run, mesh, ema=ema, step=step)
  told = described(run, loaded)
  out = out or f'{run.workdir}/samples/{told["step"]:07d}-{count}'
  if not overwrite:
    processes.on_first(lambda: _keep_finished(out, told | {'count': count}))
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


def _try_outputs(out, run, png_folder):
  """Raises UsageError where an output cannot be written."""
  places.try_file(f'{out or run.workdir + "/samples/x"}.npz')
  if png_folder:
    places.try_folder(png_folder, 'png_folder')


def _keep_finished(out, told):
  """Raises UsageError where finished images would give way to others."""
  if not epath.Path(f'{out}.npz').exists():
    return
  try:
    found = json.loads(epath.Path(f'{out}.json').read_text())
    was = {name: found.get(name) for name in told}
  except (OSError, ValueError, AttributeError):
    was = {}
  now = json.loads(json.dumps(told))
  differ = [f'{k} {was.get(k)!r}, now {now[k]!r}' for k in now if was.get(k) != now[k]]
  if differ:
    made = '; '.join(differ[:4]) if was else 'nothing beside it says how'
    raise errors.UsageError(
        f'{out}.npz is there already ({made}): another --out, or --overwrite'
    )


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
  unit = sharding.row_parts(mesh)
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
