"""What a job sets up where the autoencoder learns as well (REPA-E).

The parts of the step, the state before the first one, and the weights that it
starts from. jobs.setup calls this where config.end_to_end is set.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import build
from irepa_jax import check
from irepa_jax import errors
from irepa_jax.data import manifest as manifests
from irepa_jax.distributed import sharding
from irepa_jax.models import autoencoders
from irepa_jax.models import batch_norm
from irepa_jax.models import discriminator as discriminators
from irepa_jax.models import flops
from irepa_jax.models import lpips
from irepa_jax.models import vae as vaes
from irepa_jax.train import end_to_end
from irepa_jax.weights import files

BN_EPS = 1e-4  # of the released SiT.bn
LEAST_SIDE = 24  # pixels from which the discriminator has a patch


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
        f'config.autoencoder is {config.autoencoder!r}, which has no weights to'
        ' train; end_to_end takes sd-vae-f8d4, vae-f16d32 or vae-digits'
    )
  if config.adversarial_weight and config.image_size < LEAST_SIDE:
    raise errors.UsageError(
        f'config.image_size is {config.image_size}; the discriminator needs'
        f' {LEAST_SIDE} pixels or more: set adversarial_weight=0'
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


def make_step(built: build.Experiment, config, mesh):
  """Returns step(state, batch, frozen, key) -> (state, metrics)."""
  made = networks(built, config, mesh)
  return end_to_end.make_step(parts(built, config, made))


def parts(
    built: build.Experiment, config, made: Networks
) -> end_to_end.Parts:
  """Returns the functions of a step."""
  once = (1.0,) * max(len(built.encoders), 1)
  return end_to_end.Parts(
      images=lambda batch: batch['image'].astype(jnp.float32) / 127.5 - 1,
      targets=lambda batch, frozen: build.targets(
          built, config, batch, frozen[:-1]
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
          build.network(built.model, params['model']), x, draw
      ),
      align=functools.partial(build.align, built, check.coefficients(config)),
      align_vae=functools.partial(build.align, built, once),
      optimizers=optimizers(config),
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


def optimizers(config):
  """Returns an optimiser for each group of parameters that there is."""
  rates = {'model': config.lr, 'vae': config.vae_lr}
  if config.adversarial_weight:
    rates['discriminator'] = config.discriminator_lr
  return {name: build.optimizer(config, lr=lr) for name, lr in rates.items()}


def init_state(built: build.Experiment, config, params, key):
  """Returns the state before the first step, of random weights.

  params: {'model', 'projector'}.
  """
  made = networks(built, config)
  k_vae, k_judge = jax.random.split(key)
  params = params | {'vae': built.autoencoder.init(k_vae)}
  statistics = {'bn': batch_norm.initial(built.model.channels), 'disc_bn': {}}
  if made.discriminator:
    statistics['disc_bn'] = made.discriminator.initial()
    image, _ = made.discriminator.example_inputs()
    params['discriminator'] = made.discriminator.init(
        k_judge, jnp.zeros(image.shape), statistics['disc_bn']
    )['params']
  return end_to_end.create(
      params, statistics, optimizers(config), tuple(config.ema)
  )


def train_flops(built: build.Experiment, config):
  """Returns the FLOPs of a step beside those of the model's own, per image.

  Backward is twice forward, or once where only the input has a gradient.
  """
  made, side = networks(built, config), config.image_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  forward = lambda module, *inputs: flops.counted(
      lambda *inputs: module.init_with_output(jax.random.key(0), *inputs)[0],
      *inputs,
  )
  # Pass 1 runs the model up to the tap, and back from there to the latents.
  share = built.model.align_depth / built.model.depth
  total = 3 * forward(made.vae, image) + 2 * share * flops.sit(built.model)
  if made.lpips:  # of two images, one of them with a gradient
    total += 1.5 * forward(made.lpips, image, image)
  if made.discriminator:  # pass 1, and both images in pass 2
    statistics = made.discriminator.initial()
    total += 8 * forward(made.discriminator, image, statistics)
  return total


def lpips_shapes(built: build.Experiment, config):
  """Returns the weights of LPIPS as shapes; {} where its loss counts nothing."""
  module = networks(built, config).lpips
  if module is None:
    return {}
  init = lambda key: module.init(
      key, *(jnp.zeros(s.shape, s.dtype) for s in module.example_inputs())
  )
  return jax.eval_shape(init, jax.random.key(0))['params']


def load_lpips(built: build.Experiment, config):
  """Reads the weights of LPIPS, on the host; {} as above."""
  module = networks(built, config).lpips
  if module is None:
    return {}
  network, heads = (config.lpips_weights or ',').split(',')
  return lpips.load(module, network.strip(), heads.strip())


# Where a new run starts ---------------------------------------------------------


def read_start(built: build.Experiment, config):
  """Reads the weights and statistics that a new run starts from, on the host.

  Returns {'vae', 'discriminator', 'bn', 'disc_bn'}, without those that start
  at random. Raises UsageError where the statistics of the latents are not known.
  """
  codec, start = built.autoencoder, {}
  if config.autoencoder_weights or codec.source:
    start['vae'] = codec.load(config.autoencoder_weights or None)
    start['bn'] = _statistics(codec, config)
  if config.discriminator_weights and config.adversarial_weight:
    start |= _read_discriminator(built, config)
  return start


def started(state, start, shapes):
  """Puts what was read in the place of what is random; returns the state.

  shapes: of the state, with their shardings.
  """
  put = lambda tree, like: sharding.put(tree, sharding.of(like))
  params, statistics, ema = {}, {}, state.ema
  for name in ('vae', 'discriminator'):
    if name in start:
      params[name] = put(start[name], shapes.params[name])
  for name in ('bn', 'disc_bn'):
    if name in start:
      statistics[name] = put(start[name], shapes.model_state[name])
  if 'bn' in start:
    bn = {name: start['bn'][name] for name in ('mean', 'var')}
    pairs = zip(ema, shapes.ema, strict=True)
    ema = tuple(e | {'bn': put(bn, like['bn'])} for e, like in pairs)
  return state._replace(
      params=state.params | params,
      ema=ema,
      model_state=state.model_state | statistics,
  )


def _statistics(codec, config):
  """Returns the first running statistics, of a file or of the data set."""
  if config.vae_statistics:
    path = files.fetch(config.vae_statistics)
    bias, scale = map(np.float32, autoencoders.read_statistics(path))
    mean, var = bias, 1 / np.square(scale)
  else:
    manifest = _manifest(codec, config)
    mean = np.float32(manifest.latent_mean)
    var = np.square(np.float32(manifest.latent_std))
  if len(mean) != codec.channels:
    raise errors.DataError(
        f'{config.vae_statistics} is for latents of {len(mean)} channels,'
        f' {codec.name} has {codec.channels}'
    )
  return {'mean': mean, 'var': var, 'count': np.int32(0)}


def _manifest(codec, config):
  """Returns what the data set knows of the latents of just these weights."""
  found = None
  if config.data != 'digits':
    manifest = manifests.read(config.data)
    path = codec.fetch(config.autoencoder_weights or None)
    if manifest.autoencoder == codec.name and manifest.latent_mean:
      found = manifest.autoencoder_sha256 == files.sha256(path) and manifest
  if not found:
    raise errors.UsageError(
        f'the latent statistics of {codec.name} are not known: set'
        ' config.vae_statistics to its latents-stats file, or prepare the data'
        ' set with these weights, which measures them'
    )
  return found


def _read_discriminator(built, config):
  """Reads the weights and statistics of the discriminator."""
  path = files.fetch(config.discriminator_weights)
  try:
    return discriminators.from_torch(
        networks(built, config).discriminator, files.read(path)
    )
  except errors.DataError as error:
    raise errors.DataError(f'{path} is no discriminator: {error}') from None


# The functions of the step ------------------------------------------------------


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
  params = made.gather(frozen[-1])
  return made.lpips.apply({'params': params}, x, reconstruction)


def _discriminate(made, params, statistics, x):
  params = made.gather(params)
  return made.discriminator.apply({'params': params}, x, statistics)


def _whole(made, params):
  """Gathers weights, the large ones in the dtype in which they are used."""
  cast = lambda w: w.astype(made.vae.dtype) if w.ndim == 4 else w
  return made.gather(jax.tree.map(cast, params))
