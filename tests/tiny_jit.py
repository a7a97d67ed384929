"""The tiny JiT of the oracles, with the official weights they hold."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import models
from irepa_jax.models import projector as projectors
from irepa_jax.weights import convert


def build(oracle, case=None, **overrides):
  """Returns (model, projector or None, params) of an oracle file."""
  arch, args = oracle['meta']['arch'], oracle['meta']['args']
  args = args[case] if case else args
  model = models.create(
      f'JiT-B/{arch["patch_size"]}',
      **dict(
          width=arch['hidden_size'],
          depth=arch['depth'],
          heads=arch['num_heads'],
          bottleneck=arch['bottleneck_dim'],
          context_start=arch['in_context_start'],
          context_length=arch['in_context_len'],
          num_classes=args['class_num'],
          size=args['img_size'],
          align_depth=args['encoder_depth'],
          attn_dropout=args['attn_dropout'],
          proj_dropout=args['proj_dropout'],
      )
      | overrides,
  )
  projector = None
  if args['z_dims']:
    projector = projectors.Projectors(
        args['projection_layer_type'],
        in_width=model.width,
        widths=tuple(args['z_dims']),
        grid=(model.size // model.patch,) * 2,
        hidden=args['projector_dim'],
        kernel=args['proj_kwargs_kernel_size'],
    )
  weights = golden_files.subset(oracle, 'sd')
  if case:
    weights |= golden_files.subset(oracle, f'case/{case}/sd')
  params = convert.from_official(model, projector, weights)
  return model, projector, jax.tree.map(jnp.asarray, params)


def network(model, params):
  """Returns apply(x, t, y, keep=None) of the model."""
  return functools.partial(model.apply, {'params': params['model']})


def last(x):
  """Moves torch channels to the end."""
  return jnp.asarray(np.moveaxis(x, -3, -1))
