"""The tokens of saved runs, as representations for an analysis."""

import itertools

import jax
import jax.numpy as jnp

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import representations
from irepa_jax.checkpoints import manager
from irepa_jax.data import latents
from irepa_jax.data import manifest as manifests
from irepa_jax.diffusion import paths
from irepa_jax.distributed import sharding
from irepa_jax.jobs import saved_run

IMAGE_SIZE = 256  # where no run says otherwise


def steps(run):
  """Returns the steps of the saved checkpoints; CheckpointError without any."""
  found = manager.steps(run.checkpoints)
  if not found:
    raise errors.CheckpointError(f'no checkpoint under {run.checkpoints}')
  return found


def image_size(runs, wanted=0):
  """Returns the image size that all runs share; 256 without runs.

  wanted: must be that size; 0 takes it as it is.
  """
  sizes = {run.config.image_size for run in runs}
  size = wanted or (min(sizes) if sizes else IMAGE_SIZE)
  if sizes - {size}:
    raise errors.UsageError(
        f'runs at {sorted(sizes)} pixels cannot be analysed at {size}'
    )
  return size


def places(blocks, times):
  """Returns all (block, t) of two lists of texts; no blocks: the aligned one."""
  try:
    numbers = [int(block) for block in blocks] or [None]
    return list(itertools.product(numbers, [float(t) for t in times]))
  except ValueError as error:
    raise errors.UsageError(
        f'--blocks and --times are numbers: {error}'
    ) from error


def candidate(run, mesh, pictures, block, t, *, step=None):
  """Returns (name, load) of the tokens after a block at time t.

  run: of saved_run.open_.
  block: from 1, or None for the block that is aligned.
  step: of the checkpoint, or None for the newest whole one.
  """
  model = run.built.model.clone(align_depth=block or run.config.align_depth)
  if not 1 <= model.align_depth <= model.depth:
    raise errors.UsageError(
        f'block {model.align_depth}: {run.name} has blocks 1 to {model.depth}'
    )
  if not 0 <= t <= 1:
    raise errors.UsageError(f't = {t}: 0 is data, 1 is noise')
  name = f'{run.name} block {model.align_depth} t {t:g}'

  def load():
    params, meta = saved_run.load(run, mesh, step=step)
    return representations.hidden(
        name,
        model,
        params['model'],
        clean_latents(run, mesh, pictures, meta),
        t=t,
        path=paths.PATHS[run.config.path],
        seed=run.config.seed,
        noise_scale=run.config.noise_scale,
    )

  return name, load


def clean_latents(run, mesh, pictures, meta):
  """Returns f(inputs.Batch) -> x [b h w c]: the mean of the posterior.

  From the moments of a prepared data set, else from the images; meta: of the
  checkpoint.
  """
  rows = sharding.batch_sharding(mesh)
  encode = None
  if not _check_data(run, pictures):
    params = saved_run.load_decoder(run, mesh, meta)
    encode = jax.jit(run.built.autoencoder.encode)

  def latent(batch):
    if encode is None:
      moments = jax.device_put(jnp.float32(batch.moments), rows)
    else:
      moments = encode(params, jax.device_put(batch.image, rows))
    mean = jnp.split(moments, 2, axis=-1)[0]
    return latents.normalise(mean, meta['bias'], meta['scale'])

  return latent


def _check_data(run, pictures):
  """Whether the pictures bring latents; DataError if those of another codec."""
  origin = pictures.origin
  if (
      not isinstance(origin, inputs.DataSet)
      or not origin.manifest.moments_shape
      or not run.built.autoencoder.stored
  ):
    return False
  model = run.built.model
  manifests.check(
      origin.manifest,
      autoencoder=run.config.autoencoder,
      latent_shape=(model.size, model.size, model.channels),
  )
  return True
