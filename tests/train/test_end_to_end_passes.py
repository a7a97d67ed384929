"""Single passes of REPA-E's step against the released modules.

What comes out of the autoencoder stands in the place of its weights, so that
its gradient is what the first optimiser is given.
"""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import repa_e

from irepa_jax import alignment
from irepa_jax.diffusion import objectives
from irepa_jax.models import batch_norm
from irepa_jax.models import discriminator as discriminators
from irepa_jax.models import projector as projectors
from irepa_jax.models import sit
from irepa_jax.models import vae
from irepa_jax.train import end_to_end
from irepa_jax.weights import convert

pytestmark = pytest.mark.usefixtures('fast_compile')

SIT = golden_files.load('repae_sit')
LOSS = golden_files.load('repae_vae_loss')
CFG = SIT['meta']['cfg']
KEPT = optax.trace(0.0)  # an optimiser whose state is the last gradient

nhwc = repa_e.nhwc


def one_step(parts, params, statistics, batch):
  """Returns (state, metrics) of a step with some of its parts."""
  nothing = dict.fromkeys(end_to_end.Parts._fields)
  settings = dict(discriminator_start=0, diffusion_start=0, freeze_vae_from=0)
  parts = end_to_end.Parts(**(nothing | settings | parts))
  state = end_to_end.create(
      params, statistics, parts.optimizers, tuple(parts.ema)
  )
  step = jax.jit(end_to_end.make_step(parts))
  return step(state, batch, {}, jax.random.key(0))


# The losses of the autoencoder ---------------------------------------------------


def test_the_generator_loss_and_its_gradient_equal_the_released_ones():
  judge = discriminators.Discriminator(width=LOSS['meta']['ndf'])
  start = 'sd/discriminator.'
  entries = {
      k.removeprefix(start): v for k, v in LOSS.items() if k.startswith(start)
  }
  kl = vae.kl(nhwc(LOSS['posterior_params']))
  state, metrics = one_step(
      {
          'images': lambda batch: batch['image'],
          'targets': lambda batch, frozen: (),
          'draw': lambda key, batch: (0, 0),
          'reconstruct': lambda made, x, noise: (made, made, kl),
          # The oracle's own stand-in for LPIPS.
          'perceptual': lambda frozen, a, b: jnp.mean(
              jnp.square(a - b), axis=(1, 2, 3)
          ),
          'discriminate': lambda weights, running, x: judge.apply(
              {'params': weights}, x, running
          ),
          'hinge': discriminators.hinge,
          'train': batch_norm.train,
          'diffusion': lambda params, x, draw: (jnp.zeros(len(x)), None),
          'align': lambda params, tokens, targets: jnp.zeros(()),
          'optimizers': {'vae': KEPT, 'discriminator': KEPT, 'model': KEPT},
          'ema': (),
          'weights': {'l1': 1.0, 'lpips': 1.0, 'kl': 1e-6, 'adversarial': 0.1},
      },
      {
          'vae': nhwc(LOSS['reconstructions']),
          'discriminator': convert.from_torch(
              judge, entries, drop=repa_e.BUFFERS
          ),
          'model': {},
          'projector': {},
      },
      {
          'bn': batch_norm.initial(3),
          'disc_bn': repa_e.judge_statistics(entries),
      },
      {'image': nhwc(LOSS['inputs']), 'label': jnp.zeros(2, jnp.int32)},
  )
  for name, stored in {
      'vae/loss': 'gen/total',
      'vae/l1': 'gen/reconstruction_loss',
      'vae/lpips': 'gen/perceptual_loss',
      'vae/adversarial': 'gen/gan_loss',
      'discriminator/loss': 'disc/discriminator_loss',
      'discriminator/real': 'disc/logits_real',
      'discriminator/fake': 'disc/logits_fake',
  }.items():
    expected = LOSS[f'step0/{stored}']
    np.testing.assert_allclose(metrics[name], expected, rtol=5e-5, err_msg=name)
  weighted = 1e-6 * metrics['vae/kl']
  np.testing.assert_allclose(weighted, LOSS['step0/gen/kl_loss'], rtol=5e-5)
  grad = state.opt_state['vae'].trace['vae']
  close(grad, nhwc(LOSS['step0/gen/grad_reconstructions']), 'reconstruction')
  after = golden_files.subset(LOSS, 'step0/bn_after_discriminator')
  for name, expected in repa_e.judge_statistics(after).items():
    for kind in ('mean', 'var'):
      np.testing.assert_allclose(
          state.model_state['disc_bn'][name][kind],
          expected[kind],
          rtol=1e-5,
          atol=1e-7,  # means of the third layer are as small as 2e-4
      )


# The model, in both its passes ---------------------------------------------------


def networks():
  model = sit.SiT(
      patch=CFG['patch_size'],
      width=CFG['hidden_size'],
      depth=CFG['depth'],
      heads=CFG['num_heads'],
      num_classes=CFG['num_classes'],
      size=CFG['input_size'],
      align_depth=CFG['encoder_depth'],
  )
  projector = projectors.Projectors(
      'mlp', model.width, tuple(CFG['z_dims']), hidden=CFG['projector_dim']
  )
  return model, projector


def sit_parts():
  model, projector = networks()
  flow = objectives.FlowMatching(null_label=model.num_classes)
  dropped = SIT['train/draw_label_drop_u'] < CFG['class_dropout_prob']
  y = np.where(dropped, model.num_classes, SIT['y']).astype(np.int32)
  draw = objectives.Draw(
      jnp.asarray(SIT['time_input']), nhwc(SIT['draw_noise']), jnp.asarray(y)
  )

  def align(weight, params, tokens, targets):
    made = projector.apply({'params': params['projector']}, tokens)
    return alignment.alignment_loss(made, targets, (weight,))

  def diffusion(params, x, draw):
    apply = lambda *inputs: model.apply({'params': params['model']}, *inputs)
    return flow.loss(apply, x, draw)

  return {
      'images': lambda batch: jnp.zeros(()),
      'targets': lambda batch, frozen: (jnp.asarray(SIT['zs/0']),),
      'draw': lambda key, batch: (0, draw),
      'reconstruct': lambda z, x, noise: (z, x, jnp.zeros(4)),
      'evaluate': functools.partial(batch_norm.evaluate, eps=1e-4),
      'train': functools.partial(batch_norm.train, eps=1e-4),
      'diffusion': diffusion,
      'align': functools.partial(align, SIT['meta']['proj_coeff']),
      'align_vae': functools.partial(align, 1.0),
      'optimizers': {'vae': KEPT, 'model': KEPT},
      'ema': (0.9999, 0.9),
      'weights': {'l1': 0.0, 'kl': 0.0, 'alignment': 1.5},
  }


def sit_step():
  model, projector = networks()
  entries = golden_files.subset(SIT, 'sd')
  weights = {k: v for k, v in entries.items() if not k.startswith('bn.')}
  params = convert.from_official(model, projector, weights)
  return one_step(
      sit_parts(),
      jax.tree.map(jnp.asarray, params) | {'vae': nhwc(SIT['z'])},
      {'bn': repa_e.read_statistics(entries, 'bn'), 'disc_bn': {}},
      {'label': jnp.asarray(SIT['y'].astype(np.int32))},
  )


def test_both_passes_of_the_model_equal_the_released_ones():
  state, metrics = sit_step()
  for name, expected in (
      ('vae/alignment', SIT['align/proj_loss']),
      ('diffusion', SIT['train/denoising_loss'].mean()),
      ('alignment', 0.5 * SIT['train/proj_loss']),
      ('loss', SIT['train/sit_loss_coeff0.5']),
  ):
    np.testing.assert_allclose(metrics[name], expected, rtol=5e-5, err_msg=name)
  grad = state.opt_state['vae'].trace['vae']
  close(grad, nhwc(SIT['align/grad_z_times_coeff1.5']), 'z')
  made = convert.to_official(*networks(), state.opt_state['model'].trace)
  for name, expected in golden_files.subset(SIT, 'train/grad').items():
    current = name
    if name.startswith('projectors.0.'):
      current = name.replace('projectors.0.', 'projectors.0.projection_layer.')
    close(made[current], expected, name)
  for i, decay in enumerate(('0.9999', '0.9')):
    stored = golden_files.subset(SIT, f'ema{decay}')
    expected = repa_e.read_statistics(stored, 'bn')
    for kind in ('mean', 'var'):
      seen = state.ema[i]['bn'][kind]
      np.testing.assert_allclose(seen, expected[kind], rtol=1e-5)


def close(made, expected, name):
  expected = np.asarray(expected)
  made = np.asarray(made)
  if made.shape != expected.shape:
    made = made.reshape(-1)[:: made.size // 160]
  limit = 2e-4 * np.abs(expected).max() + 1e-7
  assert np.abs(made - expected).max() <= limit, name
