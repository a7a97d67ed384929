"""From a configuration to the parts of an end-to-end step (REPA-E).

Beside build.py, which makes the parts that all trainers share.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irepa_jax import build
from irepa_jax import check
from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.models import batch_norm
from irepa_jax.models import discriminator as discriminators
from irepa_jax.models import lpips
from irepa_jax.models import vae as vaes
from irepa_jax.train import end_to_end

BN_EPS = 1e-4  # of the released SiT.bn


class Networks(NamedTuple):
  """The networks beside those of build.Experiment."""

  vae: Any  # linen module, in the compute dtype
  discriminator: Any  # linen module; None where its loss has weight 0
  lpips: Any
  gather: Any  # weights -> the same, whole on every device


def networks(built: build.Experiment, config, mesh=None) -> Networks:
  """Returns the networks of the autoencoder's losses.

  Raises UsageError for an autoencoder that has nothing to train.
  """
  if not isinstance(built.autoencoder.module, vaes.VAE):
    raise errors.UsageError(
        f'config.autoencoder is {config.autoencoder!r}; end_to_end trains its'
        ' encoder and decoder, and it has no weights: take sd-vae-f8d4,'
        ' vae-f16d32 or vae-digits'
    )
  dtype = jnp.dtype(config.dtype)
  judge = discriminators.Discriminator(groups=config.discriminator_groups)
  return Networks(
      vae=built.autoencoder.module.clone(
          dtype=dtype, remat=config.remat != 'none'
      ),
      discriminator=judge if config.adversarial_weight else None,
      lpips=lpips.LPIPS(doubled=config.lpips_range == 'released')
      if config.perceptual_weight
      else None,
      gather=sharding.gather(mesh) if mesh else lambda weights: weights,
  )


def parts(
    built: build.Experiment, config, made: Networks
) -> end_to_end.Parts:
  """Returns the functions of a step."""
  once = (1.0,) * max(len(built.encoders), 1)
  return end_to_end.Parts(
      images=lambda batch: batch['image'].astype(jnp.float32) / 127.5 - 1,
      targets=lambda batch, frozen: build.targets(
          built, config, batch, frozen['encoders']
      ),
      draw=functools.partial(_draw, built),
      reconstruct=functools.partial(reconstruct, made),
      perceptual=functools.partial(_perceptual, made) if made.lpips else None,
      discriminate=functools.partial(_discriminate, made)
      if made.discriminator
      else None,
      hinge=discriminators.hinge,
      evaluate=functools.partial(batch_norm.evaluate, eps=BN_EPS),
      train=functools.partial(
          batch_norm.train, eps=BN_EPS, momentum=config.bn_momentum
      ),
      diffusion=lambda params, x, draw: built.objective.loss(
          build.network(built, params), x, draw
      ),
      align=functools.partial(build.align, built, check.coefficients(config)),
      align_vae=functools.partial(build.align, built, once),
      optimizers=optimizers(built, config),
      ema=tuple(config.ema),
      weights={
          'l1': 1.0,
          'lpips': config.perceptual_weight,
          'kl': config.kl_weight,
          'adversarial': config.adversarial_weight,
          'alignment': config.vae_align_coefficient,
      },
      discriminator_start=config.discriminator_start,
      diffusion_start=config.diffusion_start,
      freeze_vae_from=config.freeze_vae_from,
  )


def optimizers(built: build.Experiment, config):
  """Returns an optimiser for each group of parameters that there is."""
  rates = {'model': config.lr, 'vae': config.vae_lr}
  if config.adversarial_weight:
    rates['discriminator'] = config.discriminator_lr
  return {name: build.optimizer(config, lr) for name, lr in rates.items()}


def init_params(built: build.Experiment, made: Networks, key):
  """Returns {'vae'} and, with one, {'discriminator'}, random, float32."""
  k_vae, k_judge = jax.random.split(key)
  params = {'vae': built.autoencoder.init(k_vae)}
  if made.discriminator:
    image, _ = made.discriminator.example_inputs()
    params['discriminator'] = made.discriminator.init(
        k_judge, jnp.zeros(image.shape), made.discriminator.initial()
    )['params']
  return params


def init_statistics(built: build.Experiment, made: Networks):
  """Returns {'bn', 'disc_bn'} before the first batch."""
  judge = made.discriminator
  return {
      'bn': batch_norm.initial(built.model.channels),
      'disc_bn': judge.initial() if judge else {},
  }


def reconstruct(made: Networks, params, x, noise):
  """Returns (z, x', KL) of images x [b H W 3] in [-1, 1].

  noise: standard normal [b h w c]; zeros give the mean of the posterior.
  """
  whole = _whole(made, params)
  apply = lambda method, x: made.vae.apply({'params': whole}, x, method=method)
  mean_logvar = apply('encode', x)
  mean, std = vaes.posterior(mean_logvar)
  z = mean + std * noise
  return z, apply('decode', z), vaes.kl(mean_logvar)


def _draw(built, key, batch):
  """Returns (noise of the posterior, draw of the objective)."""
  k_latent, k_draw = jax.random.split(key)
  y = batch['label']
  model = built.model
  shape = (len(y), model.size, model.size, model.channels)
  draw = built.objective.draw(k_draw, jnp.zeros(shape), y)
  return jax.random.normal(k_latent, shape), draw


def _perceptual(made, frozen, x, reconstruction):
  params = made.gather(frozen['lpips'])
  return made.lpips.apply({'params': params}, x, reconstruction)


def _discriminate(made, params, statistics, x):
  params = made.gather(params)
  return made.discriminator.apply({'params': params}, x, statistics)


def _whole(made, params):
  """Gathers weights, the large ones in the dtype in which they are used."""
  cast = lambda w: w.astype(made.vae.dtype) if w.ndim == 4 else w
  return made.gather(jax.tree.map(cast, params))
