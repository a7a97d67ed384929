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
from irepa_jax.diffusion import meanflow
from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths
from irepa_jax.diffusion import samplers
from irepa_jax.distributed import sharding
from irepa_jax.evals import generate
from irepa_jax.models import projector as projectors
from irepa_jax.models import stack
from irepa_jax.train import schedule
from irepa_jax.train import state as states
from irepa_jax.train import step as steps

IMAGENET = 1_281_167  # records, where a schedule is wanted before the data set


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
  if config.end_to_end:  # no latents are stored: they move
    autoencoder = autoencoder.moving()
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
      objective=OBJECTIVES[config.objective](config, module, mesh),
      optimizer=optimizer(config),
  )


def model(config, autoencoder, mesh=None):
  """Returns the diffusion transformer for the latents of the autoencoder."""
  if config.image_size % autoencoder.factor:
    raise errors.UsageError(
        f'config.image_size is {config.image_size}; {config.autoencoder} needs'
        f' a multiple of {autoencoder.factor}'
    )
  _check_attention(config, mesh)
  module = models.create(
      config.model,
      size=config.image_size // autoencoder.factor,
      channels=autoencoder.channels,
      num_classes=config.num_classes,
      **_own_settings(config),
      align_depth=config.align_depth,
      dtype=jnp.dtype(config.dtype),
      attention=config.attention,
      scan_layers=config.scan_layers,
      remat=config.remat,
      **placement(mesh),
  )
  if module.size % module.patch:
    raise errors.UsageError(
        f'{config.model} needs a latent side divisible by {module.patch}; at'
        f' image_size={config.image_size} with {config.autoencoder} it is'
        f' {module.size}'
    )
  if module.size == module.patch:
    raise errors.UsageError(
        f'{config.model} sees a latent of {module.size}x{module.size} as one'
        ' token; it needs a smaller patch or a larger config.image_size'
    )
  return module


def _own_settings(config):
  """Returns the fields of the network that not every kind of model has."""
  family = models.family(config.model)
  for field in {'attn_dropout', 'proj_dropout'} - set(family.settings):
    if config[field]:
      raise errors.UsageError(
          f'config.{field} is {config[field]}; {config.model} has no dropout'
      )
  found = {field: config[field] for field in family.settings}
  if config.objective == 'flow_matching':
    return found
  if family is not models.FAMILIES['SiT']:
    raise errors.UsageError(
        f'config.objective is {config.objective!r}; {config.model} has no input'
        ' for the duration of a step: a SiT has one'
    )
  guidances = config.objective == 'improved_mean_flow'
  return found | {'durations': True, 'guidances': guidances}


def _check_attention(config, mesh):
  """Raises UsageError for devices that the kernel of cuDNN is not made for."""
  if config.attention != 'cudnn' or mesh is None:
    return
  platform = mesh.devices.flat[0].platform
  if platform not in ('cuda', 'gpu') or config.dtype != 'bfloat16':
    raise errors.UsageError(
        f"config.attention is 'cudnn' on {platform} in {config.dtype}; it must"
        " be 'auto' or 'xla', except on NVIDIA GPUs in bfloat16"
    )


def placement(mesh):
  """Returns where weights are gathered and how activations are split."""
  if mesh is None:
    return {}
  return {
      'gather': sharding.gather(mesh),
      'constrain': sharding.constrain(mesh),
      'platform': mesh.devices.flat[0].platform,
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
      gather=module.gather,
  )


def token_grid(module):
  """Returns (rows, columns) of the model's tokens."""
  return (module.size // module.patch,) * 2


def flow_matching(config, module, mesh):
  """Returns the flow-matching objective."""
  del module, mesh
  return objectives.FlowMatching(
      null_label=config.num_classes,
      path=paths.PATHS[config.path],
      time=times(config),
      prediction=config.prediction,
      label_dropout=config.label_dropout,
      loss_space=config.loss_space,
      floor=config.divisor_floor,
      noise_scale=config.noise_scale,
      dropout=bool(config.attn_dropout or config.proj_dropout),
  )


def mean_flow(config, module, mesh, make=meanflow.MeanFlow, **settings):
  """Returns the objective of MeanFlow."""
  # Its product is forward only: nothing to recompute, no kernels of cuDNN.
  product = module.clone(
      dtype=jnp.dtype(config.product_dtype), attention='xla', remat='none'
  )
  return make(
      null_label=config.num_classes,
      time=times(config),
      label_dropout=config.label_dropout,
      data_proportion=config.data_proportion,
      omega=config.omega,
      kappa=config.kappa,
      interval=(config.omega_low, config.omega_high),
      power=config.loss_power,
      eps=config.loss_eps,
      product=lambda apply: network(product, *jax.lax.stop_gradient(apply.args)),
      shards=sharding.row_parts(mesh) if mesh else 1,
      **settings,
  )


def improved_mean_flow(config, module, mesh):
  """Returns the objective of improved MeanFlow."""
  return mean_flow(
      config,
      module,
      mesh,
      make=meanflow.ImprovedMeanFlow,
      largest=config.omega_largest,
  )


OBJECTIVES = {
    'flow_matching': flow_matching,
    'mean_flow': mean_flow,
    'improved_mean_flow': improved_mean_flow,
}


def times(config):
  """Returns the distribution of t."""
  return functools.partial(
      objectives.TIMES[config.time], mean=config.time_mean, std=config.time_std
  )


def optimizer(config, records=IMAGENET, *, lr=None):
  """Returns the optax transformation; lr: None is that of the config.

  records: of the data set, for a warm-up that is counted in epochs; they leave
  out the last incomplete batch.
  """
  lr = config.lr if lr is None else lr
  if config.warmup_epochs or config.decay_steps:
    epoch = max(records // config.batch_size, 1)
    lr = schedule.make(
        lr,
        warmup=round(config.warmup_epochs * epoch) or config.warmup_steps,
        from_zero=config.warmup_epochs > 0,
        decay=config.decay_steps,
        low=config.lr_min,
    )
  return states.make_optimizer(
      lr=lr,
      betas=config.betas,
      eps=config.adam_eps,
      weight_decay=config.weight_decay,
      decayed=decayed(config),
      clip=config.clip,
      warmup_steps=0 if callable(lr) else config.warmup_steps,
  )


def learning_rate(config, step):
  """Returns the rate with which a step, from 1, changes the weights."""
  rate = states.learning_rate(config.lr, config.warmup_steps)
  return float(rate(step - 1)) if callable(rate) else rate


def decayed(config):
  """Returns what weight decay acts on; the released trainer leaves it to torch."""
  if config.decayed != 'preset':
    return config.decayed
  return 'all' if config.preset == 'irepa_released' else 'matrices'


def parts(built: Experiment, config, bias, scale) -> steps.Parts:
  """Returns the functions of a training step.

  bias, scale: per channel of x = (z - bias) * scale, from the data set.
  """
  stored = built.autoencoder.stored
  read = latents.of_moments if stored else latents.of_pixels
  return steps.Parts(
      latents=functools.partial(
          read, bias=np.float32(bias), scale=np.float32(scale)
      ),
      targets=functools.partial(targets, built, config),
      draw=built.objective.draw,
      diffusion=lambda params, x, draw: built.objective.measured(
          network(built.model, params['model']), x, draw
      ),
      align=functools.partial(align, built, check.coefficients(config)),
      optimizer=built.optimizer,
      ema=tuple(config.ema),
      group=built.objective.group,
  )


def network(module, weights):
  """Returns apply(x, t, y ...) -> (output, tokens), a pytree of the weights.

  With dropout it takes `keep` as well, of objectives.FlowMatching.
  """
  return jax.tree_util.Partial(
      lambda weights, *inputs: module.apply({'params': weights}, *inputs),
      stack.gathered(module, weights),
  )


def targets(built, config, batch, frozen):
  """Returns the encoders' tokens on the model's grid, normalised if asked."""
  if config.features == 'cached':
    tokens = batch.get('features', ())  # of no encoder
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
  weights = stack.gathered(built.projector, params['projector'])
  projected = built.projector.apply({'params': weights}, tokens)
  return alignment.alignment_loss(projected, targets, coefficients)


def make_sample(built: Experiment, config, bias, scale):
  """Returns sample(params, noise, y, keys) -> images [b H W 3] in [-1, 1].

  params: {'model', 'decoder'}, of `sampling_weights`; 'latents', (bias, scale),
    takes the place of those given here.
  """
  sampler = samplers.SAMPLERS[config.sampler]
  path = paths.PATHS[config.path]
  guidance = config.guidance
  interval = (config.guidance_low, config.guidance_high)
  as_velocity = built.objective.as_velocity
  if config.objective == 'improved_mean_flow':  # an input of its network
    as_velocity = functools.partial(as_velocity, guidance=(guidance, *interval))
    guidance = 1.0

  def sample(params, noise, y, keys):
    apply = network(built.model, params['model'])
    velocity = samplers.guided(
        as_velocity(apply, config.sample_steps),
        y,
        scale=guidance,
        interval=interval,
        ends=config.guidance_ends,
        null_label=built.model.num_classes,
    )
    x = config.noise_scale * noise
    x = sampler(velocity, x, steps=config.sample_steps, path=path, key=keys)
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
