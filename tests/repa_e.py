"""The oracles of REPA-E's step as parts, batches and states of ours."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import lpips_weights
import numpy as np

from configs import base
from irepa_jax import alignment
from irepa_jax import build
from irepa_jax.diffusion import objectives
from irepa_jax.jobs import end_to_end as jobs
from irepa_jax.models import autoencoders
from irepa_jax.models import discriminator as discriminators
from irepa_jax.models import lpips
from irepa_jax.models import projector as projectors
from irepa_jax.models import sit
from irepa_jax.models import vae
from irepa_jax.train import end_to_end
from irepa_jax.weights import convert

CASES = ('repa', 'irepa')
BUFFERS = (r'.*running_', r'.*num_batches')


@functools.cache
def golden(case):
  return golden_files.load(f'repae_step_{case}')


def nhwc(x):
  return jnp.asarray(np.moveaxis(x, 1, -1))


def experiment(case):
  """Returns (config, build.Experiment) of the small networks of an oracle."""
  meta = golden(case)['meta']
  config = base.get_config(case)
  config.update(
      end_to_end=True, dtype='float32', train_positions=True, remat='none',
      align_coefficient=str(meta['proj_coeff']),
  )  # fmt: skip
  cfg = meta['sit']
  model = sit.SiT(
      patch=cfg['patch_size'],
      width=cfg['hidden_size'],
      depth=cfg['depth'],
      heads=cfg['num_heads'],
      num_classes=cfg['num_classes'],
      size=16,
      align_depth=cfg['encoder_depth'],
      train_positions=True,
  )
  projector = projectors.Projectors(
      meta['projector'],
      model.width,
      (meta['z_dim'],),
      build.token_grid(model),
      hidden=meta['projector_dim'],
  )
  module = vae.VAE(
      width=meta['vae']['ch'], multipliers=(1, 1), blocks=1, channels=4
  )
  built = build.Experiment(
      model=model,
      projector=projector,
      encoders=('the stored one',),
      autoencoder=autoencoders.Autoencoder('small', module),
      objective=objectives.FlowMatching(null_label=model.num_classes),
      optimizer=None,
  )
  return config, built


def networks(case):
  """Returns the networks of the losses, small as those of the oracle."""
  config, built = experiment(case)
  width = golden(case)['meta']['ndf']
  judge = discriminators.Discriminator(width=width)
  made = jobs.networks(built, config)
  return made._replace(discriminator=judge)


@functools.cache
def golden_parts(case):
  """The parts that build makes, but for what the oracle has stored."""
  config, built = experiment(case)
  gamma = golden(case)['meta']['gamma']
  normed = functools.partial(alignment.spatial_norm, gamma=gamma)
  parts = jobs.parts(built, config, networks(case))
  return parts._replace(
      targets=lambda batch, frozen: (
          normed(batch['features']) if gamma else batch['features'],
      ),
      draw=lambda key, batch: batch['draws'],
  )


def golden_batch(case, i):
  entry = golden_files.subset(golden(case), f'step{i}')
  meta = golden(case)['meta']
  null = meta['sit']['num_classes']
  dropped = entry['draw_label_drop_u'] < meta['class_dropout_prob']
  y = np.where(dropped, null, entry['y']).astype(np.int32)
  return {
      'image': jnp.asarray(entry['image_u8'].transpose(0, 2, 3, 1)),
      'features': jnp.asarray(entry['enc_feats']),
      'label': jnp.asarray(entry['y'].astype(np.int32)),
      'draws': (
          nhwc(entry['draw_posterior']),
          objectives.Draw(
              jnp.asarray(entry['draw_time'].reshape(-1)),
              nhwc(entry['draw_noise']),
              jnp.asarray(y),
          ),
      ),
  }, entry


def read_statistics(entries, name):
  read = lambda kind: jnp.asarray(entries[f'{name}.running_{kind}'])
  count = entries.get(f'{name}.num_batches_tracked', 0)
  return {
      'mean': read('mean'),
      'var': read('var'),
      'count': jnp.asarray(count, jnp.int32),
  }


def judge_statistics(entries):
  names = {n: n.replace('_', '.') for n in discriminators.NORMED}
  return {n: read_statistics(entries, name) for n, name in names.items()}


@functools.cache
def golden_state(case):
  stored, (_, built) = golden(case), experiment(case)
  made, parts = networks(case), golden_parts(case)
  part = functools.partial(golden_files.subset, stored)
  entries = {k: v for k, v in part('sit_sd').items() if 'bn.' not in k}
  params = convert.from_official(built.model, built.projector, entries)
  params['vae'] = convert.from_torch(made.vae, part('vae_sd'))
  params['discriminator'] = convert.from_torch(
      made.discriminator, part('disc_sd'), drop=BUFFERS
  )
  return end_to_end.create(
      jax.tree.map(jnp.asarray, params),
      {
          'bn': read_statistics(part('sit_sd'), 'bn'),
          'disc_bn': judge_statistics(part('disc_sd')),
      },
      parts.optimizers,
      parts.ema,
  )


@functools.cache
def frozen(case):
  meta = golden(case)['meta']
  entries = lpips_weights.entries(golden(case), meta['vgg_seed'])
  params = convert.from_torch(lpips.LPIPS(), entries)
  return (jax.tree.map(jnp.asarray, params),)


VAE_TERMS = ('l1', 'lpips', 'kl', 'adversarial', 'alignment')
TERMS = (*VAE_TERMS, 'hinge', 'denoising', 'align')


@functools.cache
def scaled_step(case):
  """Returns a step in which every loss is multiplied by an argument."""
  parts = golden_parts(case)

  def diffusion(scales, params, x, draw):
    losses, tokens = parts.diffusion(params, x, draw)
    return scales['denoising'] * losses, tokens

  @jax.jit
  def step(state, batch, frozen, scales):
    own = parts._replace(
        weights={name: scales[name] for name in VAE_TERMS},
        hinge=lambda *logits: scales['hinge'] * parts.hinge(*logits),
        diffusion=functools.partial(diffusion, scales),
        align=lambda *found: scales['align'] * parts.align(*found),
    )
    run = end_to_end.make_step(own)
    return run(state, batch, frozen, jax.random.key(0))

  return step


def run(case, i, state, scales):
  """Returns (state, metrics) after step i; what is not named counts nothing."""
  given = {name: jnp.float32(scales.get(name, 0)) for name in TERMS}
  batch, _ = golden_batch(case, i)
  return scaled_step(case)(state, batch, frozen(case), given)


@functools.cache
def two_steps(case):
  """Returns (states after each step, metrics of each)."""
  scales = dict.fromkeys(TERMS, 1.0) | golden_parts(case).weights
  state, states, logged = golden_state(case), [], []
  for i in range(2):
    state, metrics = run(case, i, state, scales)
    states.append(state)
    logged.append(metrics)
  return states, logged
