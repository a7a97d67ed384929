"""Who learns from which loss of REPA-E, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import repa_e

from irepa_jax.distributed import sharding
from irepa_jax.train import end_to_end

VAE_TERMS = ('l1', 'lpips', 'kl', 'adversarial', 'alignment')
TERMS = (*VAE_TERMS, 'hinge', 'denoising', 'align')
PLACES = {
    'encoder': ('vae/encoder', 'vae/quant_conv'),
    'decoder': ('vae/decoder', 'vae/post_quant_conv'),
    'discriminator': ('discriminator',),
    'model': ('model/blocks_0', 'model/x_embedder', 'model/t_embedder'),
    'after the tap': ('model/blocks_1', 'model/final_layer'),
    'projector': ('projector',),
}
# loss: where its gradient arrives; nowhere else.
LEARNS = {
    'l1': {'encoder', 'decoder'},
    'lpips': {'encoder', 'decoder'},
    'adversarial': {'encoder', 'decoder'},
    'kl': {'encoder'},
    'alignment': {'encoder'},
    'hinge': {'discriminator'},
    'denoising': {'model', 'after the tap'},
    'align': {'model', 'projector'},
}


@functools.cache
def scaled_step():
  """Returns a step in which every loss is multiplied by an argument."""
  parts = repa_e.golden_parts('irepa')

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


def run_scaled(**scales):
  """Returns (state, metrics) of a step; what is not named counts nothing."""
  given = {name: jnp.float32(scales.get(name, 0)) for name in TERMS}
  batch, _ = repa_e.golden_batch('irepa', 0)
  return scaled_step()(repa_e.golden_state('irepa'), batch, repa_e.frozen('irepa'), given)


def moments(state):
  """Returns the first moments of AdamW by the path of a parameter."""
  found = {}
  for group in state.opt_state.values():
    for leaf in jax.tree.leaves(group, is_leaf=lambda s: hasattr(s, 'mu')):
      if hasattr(leaf, 'mu'):
        for path, value in jax.tree_util.tree_leaves_with_path(leaf.mu):
          found[sharding.path_name(path)] = np.asarray(value)
  return found


@pytest.mark.parametrize('loss', TERMS)
def test_a_loss_reaches_its_own_parameters_and_no_others(loss):
  found = moments(run_scaled(**{loss: 1})[0])
  reached = {
      place
      for place, starts in PLACES.items()
      if any(v.any() for k, v in found.items() if k.startswith(starts))
  }
  assert reached == LEARNS[loss]


def test_the_autoencoder_does_not_see_the_scale_of_the_denoising_loss():
  ones = dict.fromkeys(TERMS, 1)
  one, more = (moments(run_scaled(**ones | {'denoising': k})[0]) for k in (1, 8))
  changed = {k for k in one if not np.array_equal(one[k], more[k])}
  assert changed and all(k.startswith(('model', 'projector')) for k in changed)


@pytest.mark.parametrize('loss', ['l1', 'hinge', 'denoising'])
def test_nan_in_one_of_three_losses_leaves_the_step_out_whole(loss):
  before = repa_e.golden_state('irepa')
  after, metrics = run_scaled(**dict.fromkeys(TERMS, 1) | {loss: np.nan})
  assert int(metrics['skipped']) == 1 and int(after.step) == 1
  kept = before._replace(step=after.step, skipped=after.skipped)
  jax.tree.map(np.testing.assert_array_equal, kept, after)
  good, metrics = run_scaled(**dict.fromkeys(TERMS, 1))
  assert int(metrics['skipped']) == 0 and np.isfinite(metrics['loss'])
  moved = lambda a, b: np.any(np.asarray(a) != np.asarray(b))
  assert any(jax.tree.leaves(jax.tree.map(moved, before.params, good.params)))


# Phases ------------------------------------------------------------------------


@functools.cache
def phased_steps():
  """Five steps: 0 and 1 the autoencoder alone, from 4 on the model alone."""
  # Without LPIPS, which takes long to compile and has no phase.
  parts = repa_e.golden_parts('irepa')._replace(
      diffusion_start=2,
      discriminator_start=1,
      freeze_vae_from=4,
      perceptual=None,
  )
  step = jax.jit(end_to_end.make_step(parts))
  batch, _ = repa_e.golden_batch('irepa', 0)
  states, logged = [repa_e.golden_state('irepa')], []
  for _ in range(5):
    state, metrics = step(states[-1], batch, repa_e.frozen('irepa'), jax.random.key(0))
    states.append(state)
    logged.append(metrics)
  return states, logged


def test_each_group_learns_in_its_own_phase():
  states, logged = phased_steps()
  for group, active in (
      ('model', {2, 3, 4}),
      ('projector', {2, 3, 4}),
      ('vae', {0, 1, 2, 3}),
      ('discriminator', {1, 2, 3}),
  ):
    moved = {
        i
        for i in range(5)
        if not same(states[i].params[group], states[i + 1].params[group])
    }
    assert moved == active, group
  assert float(logged[0]['vae/adversarial']) == 0 != logged[1]['vae/adversarial']
  assert float(logged[1]['vae/alignment']) == 0 != logged[2]['vae/alignment']


def test_statistics_rest_with_the_autoencoder():
  states, _ = phased_steps()
  bn = [s.model_state['bn'] for s in states]
  assert not same(bn[0], bn[1]) and not same(bn[3], bn[4])
  assert same(bn[4], bn[5])
  disc_bn = [s.model_state['disc_bn'] for s in states]
  assert same(disc_bn[4], disc_bn[5])
  # Without an adversarial loss pass 1 leaves the statistics alone.
  assert int(disc_bn[1]['main_3']['count']) == 2
  assert int(disc_bn[2]['main_3']['count']) == 5


def same(a, b):
  pairs = jax.tree.map(lambda a, b: np.array_equal(a, b), a, b)
  return all(jax.tree.leaves(pairs))
