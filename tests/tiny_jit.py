"""The tiny JiT of the oracles, with the official weights they hold."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import models
from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths
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


def objective(args, **settings):
  """Returns the released objective: x is predicted, v compared, on our clock.

  Its t is 1 - t here, so that the mean of logit(t) changes its sign.
  """
  time = functools.partial(
      objectives.logit_normal, mean=-args['P_mean'], std=args['P_std']
  )
  return objectives.FlowMatching(
      **dict(
          null_label=args['class_num'],
          time=time,
          prediction='x',
          loss_space='v',
          floor=args['t_eps'],
          noise_scale=args['noise_scale'],
          label_dropout=args['label_drop_prob'],
      )
      | settings
  )


def drawn(entry, args):
  """Returns (x, Draw) of the stored draws of a batch."""
  x = last(entry['x'] if 'x' in entry else entry['image_u8'] / np.float32(127.5) - 1)
  normal = jnp.asarray(entry['draw_t_normal'])
  ratio = jnp.exp(-args['P_mean'] - args['P_std'] * normal)
  dropped = entry['draw_label_drop_u'] < args['label_drop_prob']
  y = np.where(dropped, args['class_num'], entry['y']).astype(np.int32)
  noise = args['noise_scale'] * last(entry['draw_noise'])
  return x, objectives.Draw(paths.linear.time(ratio), noise, jnp.asarray(y))


def masks(entry):
  """Returns the stored masks of dropout by {(place, shape): mask}.

  They are of blocks 1 and 2, before and after the class tokens joined, and so
  differ in their shapes.
  """
  stored = golden_files.subset(entry, 'keep')
  found = {
      f'{key.partition("/")[2]} {mask.shape}': jnp.asarray(mask)
      for key, mask in stored.items()
  }
  assert len(found) == len(stored)
  return found


def fed(masks):
  """Returns `keep` of JiT from stored masks."""
  return lambda block, place, probability, shape: masks[f'{place} {shape}']
