"""The autoencoder of an end-to-end run as a file that others can use.

  OUT.pt   the official (CompVis) names alone, as the released e2e files
  OUT      otherwise a folder in the layout of diffusers' AutoencoderKL

and beside either the statistics of its latents, OUT-latents-stats.pt, those of
a moving average: what `prepare` takes for the second stage.
"""

import json
import pathlib

import jax
import numpy as np

from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.jobs import official_end_to_end
from irepa_jax.jobs import saved_run
from irepa_jax.models import autoencoders
from irepa_jax.models import vae_layouts
from irepa_jax.weights import convert
from irepa_jax.weights import files


def export(workdir, out, *, ema=0, step=None):
  """Writes the autoencoder of a run; the step is None for the newest.

  ema: whose statistics of the latents are written, from 0.
  """
  run = saved_run.open_(workdir)
  if not run.config.end_to_end:
    raise errors.UsageError(
        f'{workdir} has not trained its autoencoder: it is'
        f' {run.config.autoencoder} as published'
    )
  mesh = sharding.make_mesh(allow_subset=True)
  _, meta = saved_run.load(run, mesh, ema=ema, step=step)
  params = saved_run.load_decoder(run, mesh, meta)
  module = run.built.autoencoder.module
  entries = official_end_to_end.in_order(
      convert.to_torch(module, jax.tree.map(np.asarray, params))
  )
  mean, scale = np.float32(meta['bias']), np.float32(meta['scale'])
  if str(out).endswith('.pt'):
    files.write_torch(out, entries)
  else:
    _write_folder(pathlib.Path(out), module, entries, mean, 1 / scale)
  statistics = f'{str(out).removesuffix(".pt")}-latents-stats.pt'
  shaped = lambda values: values.reshape(1, -1, 1, 1)
  files.write_torch(
      statistics,
      {'latents_bias': shaped(mean), 'latents_scale': shaped(scale)},
  )
  print(f'{out}: step {meta["step"]}, {len(entries)} arrays; {statistics}')


def _write_folder(folder, module, entries, mean, std):
  folder.mkdir(parents=True, exist_ok=True)
  levels = len(module.multipliers)
  files.write_safetensors(
      folder / autoencoders.SAFETENSORS,
      vae_layouts.to_diffusers(entries, levels),
  )
  config = vae_layouts.diffusers_config(
      module, mean.tolist(), std.tolist()
  )
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
