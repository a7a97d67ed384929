"""The tiny SiT of the oracles, with the official weights they hold."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import models
from irepa_jax.models import projector as projectors
from irepa_jax.weights import convert


def build(oracle):
  """Returns (model, projector, params) of an oracle file."""
  cfg = oracle['meta']['cfg']
  model = models.create(
      f'SiT-S/{cfg["patch_size"]}',
      width=cfg['hidden_size'],
      depth=cfg['depth'],
      heads=cfg['num_heads'],
      num_classes=cfg['num_classes'],
      size=cfg['input_size'],
      channels=cfg['in_channels'],
      align_depth=cfg['encoder_depth'],
  )
  side = cfg['input_size'] // cfg['patch_size']
  projector = projectors.Projectors(
      cfg['projection_layer_type'],
      in_width=cfg['hidden_size'],
      widths=tuple(cfg['z_dims']),
      grid=(side, side),
      hidden=cfg['projector_dim'],
      kernel=cfg.get('proj_kwargs_kernel_size', 1),
  )
  weights = golden_files.subset(oracle, 'sd')
  params = convert.from_official(model, projector, weights)
  return model, projector, jax.tree.map(jnp.asarray, params)


def network(model, params):
  """Returns apply(x, t, y) of the model."""
  return functools.partial(model.apply, {'params': params['model']})


def last(x):
  """Moves torch channels to the end."""
  return jnp.asarray(np.moveaxis(x, -3, -1))
