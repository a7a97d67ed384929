"""A run directory as a source of images: its configuration and its weights.

Neither the data set nor the optimiser is read: what sampling needs beside the
weights (latent statistics, the autoencoder) stands in the checkpoint.
"""

from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import ml_collections
import numpy as np

from irepa_jax import build
from irepa_jax import check
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.distributed import sharding
from irepa_jax.jobs import setup
from irepa_jax.names import file_names
from irepa_jax.names.experiments import base
from irepa_jax.runs import directory
from irepa_jax.weights import files

# How the same numbers are computed; a run may come from another device.
PORTABLE = {'attention': 'auto', 'remat': 'none', 'allow_subset': True}
# What is told about images beside which checkpoint made them.
TOLD = (
    'model', 'seed', 'labels', 'num_classes', 'sampler', 'sample_steps', 'path',
    'prediction', 'loss_space', 'divisor_floor', 'noise_scale', 'guidance',
    'guidance_low', 'guidance_high', 'guidance_ends', 'quantise', 'dtype',
    'autoencoder', 'image_size',
)  # fmt: skip


class SavedRun(NamedTuple):
  """A run directory whose configuration has been read."""

  workdir: str
  config: Any
  built: build.Experiment

  @property
  def name(self):
    return file_names.shown(epath.Path(self.workdir).name)

  @property
  def checkpoints(self):
    return epath.Path(self.workdir) / 'checkpoints'

  @property
  def data(self):
    """The data set it was trained on."""
    if self.config.data == 'digits':
      return str(epath.Path(self.workdir) / 'data')
    return self.config.data


def open_(workdir, **changes) -> SavedRun:
  """Reads the configuration of a run; `changes` replace fields of it.

  Raises CheckpointError where there is none, UsageError for bad changes.
  """
  directory.check_scheme(workdir)
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    raise errors.CheckpointError(
        f'{workdir} is not a run: it has no config.json'
    )
  fields = directory.read_config(workdir, base.FIELDS)
  config = ml_collections.ConfigDict(fields | PORTABLE | changes)
  check.config(config)
  return SavedRun(str(workdir), config, build.experiment(config))


def load(run: SavedRun, mesh, *, ema=0, step=None):
  """Reads one moving average of a checkpoint, whole on every device.

  Args:
    run: of open_.
    mesh: where the weights go.
    ema: which average, from 0 in the order of config.ema.
    step: exactly this one; None is the newest that is whole.

  Returns:
    (params {'model', 'projector'}, meta with 'step', 'bias', 'scale' ...).
  """
  check_ema(run, ema)
  return _restore(run, mesh, f'ema/{ema}', step)


def check_ema(run: SavedRun, ema):
  """Raises UsageError unless the run keeps a moving average of this number."""
  if not 0 <= ema < len(run.config.ema):
    raise errors.UsageError(
        f'ema is {ema}; the run has {len(run.config.ema)}, of decay'
        f' {tuple(run.config.ema)}, numbered from 0'
    )


def load_params(run: SavedRun, mesh, *, step=None):
  """Reads the parameters that are trained, as `load` reads an average."""
  return _restore(run, mesh, 'params', step)


def _item(run, mesh, name, step):
  whole = lambda shapes: jax.tree.map(
      lambda _: sharding.replicated(mesh), shapes
  )
  return manager.restore_item(run.checkpoints, name, step=step, shard=whole)


def _restore(run, mesh, name, step):
  params, meta = _item(run, mesh, name, step)
  if 'bn' in params:  # the statistics of latents that have moved
    bn = jax.tree.map(np.asarray, params['bn'])
    meta |= {
        'bias': bn['mean'].tolist(),
        'scale': (1 / np.sqrt(bn['var'])).tolist(),
    }
  return {'projector': {}} | params, meta


def load_decoder(run: SavedRun, mesh, meta):
  """Reads the autoencoder: its own, where it has learned with the model.

  Refuses one with other weights than the latents'.
  """
  if run.config.end_to_end:
    return _item(run, mesh, 'params/vae', meta['step'])[0]
  autoencoder, source = run.built.autoencoder, run.config.autoencoder_weights
  if meta['autoencoder'] != autoencoder.name:
    raise errors.CheckpointError(
        f'the checkpoint of {run.workdir} was trained on {meta["autoencoder"]},'
        f' config.json says {autoencoder.name}'
    )
  made_by = meta['autoencoder_sha256']
  if made_by:
    found = files.sha256(autoencoder.fetch(source or None))
    if found != made_by:
      raise errors.CheckpointError(
          f'the run was trained on latents of {autoencoder.name} with sha256'
          f' {made_by[:16]}; the weights here have {found[:16]}'
      )
  return setup.load_decoder(run.built, run.config, mesh)


def described(config, workdir, *, step, ema, autoencoder_sha256):
  """Returns every setting that moves a score of generated images.

  ema: which moving average, from 0.
  """
  return {
      'run': str(workdir),
      'step': step,
      'ema': config.ema[ema],
      'ema_index': ema,
      'autoencoder_sha256': autoencoder_sha256,
  } | {name: config[name] for name in TOLD}


def renderer(run: SavedRun, meta, mesh):
  """Returns render(weights, numbers) for evals.generate."""
  return build.make_renderer(
      run.built, run.config, mesh, meta['bias'], meta['scale']
  )
