"""From a configuration to functions: the only place where strings decide.

Everything below takes plain arguments, so that each part can be called from a
notebook; this file reads the ConfigDict and puts the parts together.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import alignment
from irepa_jax import check
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.data import latents
from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths
from irepa_jax.diffusion import samplers
from irepa_jax.distributed import sharding
from irepa_jax.evals import generate
from irepa_jax.models import flops
from irepa_jax.models import projector as projectors
from irepa_jax.train import state as states
from irepa_jax.train import step as steps


class Experiment(NamedTuple):
  """The parts of a configured experiment, before any array exists."""

  model: Any  # linen module
  projector: Any  # linen module; None without encoders
  encoders: tuple[Any, ...]
  autoencoder: Any
  objective: Any
  optimizer: Any


def experiment(config, mesh=None) -> Experiment:
  """Resolves every name of the config; raises UsageError on unknown ones."""
  check.config(config)
  autoencoder = models.autoencoder(config.autoencoder)
  module = model(config, autoencoder, mesh)
  teachers = tuple(
      encoders.create(
          name,
          resolution=config.image_size,
          dtype=jnp.dtype(config.encoder_dtype),
          scan_layers=config.encoder_scan,
          **placement(mesh),
      )
      for name in check.encoder_names(config)
  )
  return Experiment(
      model=module,
      projector=projector(config, module, teachers),
      encoders=teachers,
      autoencoder=autoencoder,
      objective=objective(config),
      optimizer=optimizer(config),
  )


def model(config, autoencoder, mesh=None):
  """Returns the diffusion transformer for the latents of the autoencoder."""
  if config.image_size % autoencoder.factor:
    raise errors.UsageError(
        f'config.image_size is {config.image_size}; {config.autoencoder} needs'
        f' a multiple of {autoencoder.factor}'
    )
  module = models.create(
      config.model,
      size=config.image_size // autoencoder.factor,
      channels=autoencoder.channels,
      num_classes=config.num_classes,
      qk_norm=config.qk_norm,
      align_depth=config.align_depth,
      train_positions=config.train_positions,
      dtype=jnp.dtype(config.dtype),
      attention=config.attention,
      scan_layers=config.scan_layers,
      remat=config.remat,
      **placement(mesh),
  )
  if module.size % module.patch:
    raise errors.UsageError(
        f'{config.model} needs a latent side divisible by {module.patch}; at'
        f' {config.image_size} pixels it is {module.size}'
    )
  if module.size == module.patch:
    raise errors.UsageError(
        f'{config.model} sees a latent of {module.size}x{module.size} as one'
        ' token; it needs a smaller patch or a larger config.image_size'
    )
  return module


def placement(mesh):
  """Returns where weights are gathered and how activations are split."""
  if mesh is None:
    return {}
  return {
      'gather': sharding.gather(mesh),
      'constrain': sharding.constrain(mesh),
  }


def projector(config, module, teachers):
  """Returns the projectors, one per encoder, or None without encoders."""
  if not teachers:
    return None
  return projectors.Projectors(
      kind=config.projector,
      in_width=module.width,
      widths=tuple(t.width for t in teachers),
      grid=token_grid(module),
      hidden=config.projector_hidden,
      kernel=config.projector_kernel,
      dtype=jnp.dtype(config.dtype),
  )


def token_grid(module):
  """Returns (rows, columns) of the model's tokens."""
  return (module.size // module.patch,) * 2


def objective(config):
  """Returns the flow-matching objective."""
  return objectives.FlowMatching(
      null_label=config.num_classes,
      path=paths.PATHS[config.path],
      time=functools.partial(
          objectives.TIMES[config.time],
          mean=config.time_mean,
          std=config.time_std,
      ),
      prediction=config.prediction,
      label_dropout=config.label_dropout,
  )


def optimizer(config, lr=None):
  """Returns the optax transformation; lr: None is that of the config."""
  return states.make_optimizer(
      lr=config.lr if lr is None else lr,
      betas=config.betas,
      eps=config.adam_eps,
      weight_decay=config.weight_decay,
      clip=config.clip,
      warmup_steps=config.warmup_steps,
  )


def parts(built: Experiment, config, bias, scale) -> steps.Parts:
  """Returns the functions of a training step.

  bias, scale: per channel of x = (z - bias) * scale, from the data set.
  """
  return steps.Parts(
      latents=functools.partial(
          _latents, bias=np.float32(bias), scale=np.float32(scale)
      ),
      targets=functools.partial(targets, built, config),
      draw=built.objective.draw,
      diffusion=lambda params, x, draw: built.objective.loss(
          network(built, params), x, draw
      ),
      align=functools.partial(align, built, check.coefficients(config)),
      optimizer=built.optimizer,
      ema=tuple(config.ema),
  )


def network(built: Experiment, params):
  """Returns apply(x, t, y) -> (output, tokens) with the weights filled in."""
  return lambda x, t, y: built.model.apply({'params': params['model']}, x, t, y)


def _latents(batch, frozen, key, *, bias, scale):
  del frozen
  moments = batch['moments'].astype(jnp.float32)
  shape = (*moments.shape[:-1], moments.shape[-1] // 2)
  z = latents.sample(moments, jax.random.normal(key, shape))
  return latents.normalise(z, bias, scale)


def targets(built, config, batch, frozen):
  """Returns the encoders' tokens on the model's grid, normalised if asked."""
  if config.features == 'cached':
    tokens = batch['features']
  else:
    tokens = [
        encoder.encode(params, batch['image'])
        for encoder, params in zip(built.encoders, frozen, strict=True)
    ]
  grid = token_grid(built.model)
  resized = [
      alignment.resize_grid(z.astype(jnp.float32), encoder.grid, grid)
      for z, encoder in zip(tokens, built.encoders, strict=True)
  ]
  if config.spatial_norm:
    resized = [alignment.spatial_norm(z, config.gamma) for z in resized]
  return tuple(resized)


def align(built, coefficients, params, tokens, targets):
  """Returns the weighted alignment of tokens with targets, []; 0 without."""
  if not targets:
    return jnp.zeros(())
  projected = built.projector.apply({'params': params['projector']}, tokens)
  return alignment.alignment_loss(projected, targets, coefficients)


def make_sample(built: Experiment, config, bias, scale):
  """Returns sample(params, noise, y, keys) -> images [b H W 3] in [-1, 1].

  params: {'model', 'decoder'}, of `sampling_weights`; 'latents', (bias, scale),
    takes the place of those given here.
  """
  sampler = samplers.SAMPLERS[config.sampler]
  path = paths.PATHS[config.path]

  def sample(params, noise, y, keys):
    velocity = samplers.guided(
        built.objective.as_velocity(network(built, params)),
        y,
        scale=config.guidance,
        interval=(config.guidance_low, config.guidance_high),
        null_label=built.model.num_classes,
    )
    x = sampler(velocity, noise, steps=config.sample_steps, path=path, key=keys)
    z = latents.denormalise(x, *params.get('latents', (bias, scale)))
    return built.autoencoder.decode(params['decoder'], z)

  return sample


def make_renderer(built: Experiment, config, mesh, bias, scale):
  """Returns render(weights, numbers) -> images with labels, of evals.generate."""
  return generate.make_renderer(
      make_sample(built, config, bias, scale),
      seed=config.seed,
      num_classes=config.num_classes,
      shape=(built.model.size, built.model.size, built.model.channels),
      labels=config.labels,
      quantise=config.quantise,
      mesh=mesh,
  )


def train_flops(built: Experiment, config):
  """Returns the FLOPs of a training step per image: backward is twice forward."""
  forward = flops.sit(built.model)
  if built.projector:
    forward += flops.projectors(built.projector)
  teachers = 0
  if config.features == 'online':
    teachers = sum(map(encoder_flops, built.encoders))
  return 3 * forward + teachers


def encoder_flops(encoder):
  """Returns the FLOPs of one image; 0 where the table does not know them."""
  sizes = dict(zip((256, 512), encoder.spec.gflops, strict=False))
  return 1e9 * sizes.get(encoder.resolution, 0)
