"""Who learns from which loss of REPA-E, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import repa_e

from irepa_jax.diffusion import objectives
from irepa_jax.distributed import sharding
from irepa_jax.train import end_to_end

pytestmark = pytest.mark.usefixtures('fast_compile')

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


def run_scaled(**scales):
  """Returns (state, metrics) of a step; what is not named counts nothing."""
  return repa_e.run('irepa', 0, repa_e.golden_state('irepa'), scales)


def moments(state):
  """Returns the first moments of AdamW by the path of a parameter."""
  found = {}
  for group in state.opt_state.values():
    for leaf in jax.tree.leaves(group, is_leaf=lambda s: hasattr(s, 'mu')):
      if hasattr(leaf, 'mu'):
        for path, value in jax.tree_util.tree_leaves_with_path(leaf.mu):
          found[sharding.path_name(path)] = np.asarray(value)
  return found


@pytest.mark.parametrize('loss', repa_e.TERMS)
def test_a_loss_reaches_its_own_parameters_and_no_others(loss):
  found = moments(run_scaled(**{loss: 1})[0])
  reached = {
      place
      for place, starts in PLACES.items()
      if any(v.any() for k, v in found.items() if k.startswith(starts))
  }
  assert reached == LEARNS[loss]


def test_the_autoencoder_does_not_see_the_scale_of_the_denoising_loss():
  ones = dict.fromkeys(repa_e.TERMS, 1)
  one, more = (moments(run_scaled(**ones | {'denoising': k})[0]) for k in (1, 8))
  changed = {k for k in one if not np.array_equal(one[k], more[k])}
  assert changed and all(k.startswith(('model', 'projector')) for k in changed)


@pytest.mark.parametrize('loss', ['l1', 'hinge', 'denoising'])
def test_nan_in_one_of_three_losses_leaves_the_step_out_whole(loss):
  before = repa_e.golden_state('irepa')
  after, metrics = run_scaled(**dict.fromkeys(repa_e.TERMS, 1) | {loss: np.nan})
  assert int(metrics['skipped']) == 1 and int(after.step) == 1
  kept = before._replace(step=after.step, skipped=after.skipped)
  jax.tree.map(np.testing.assert_array_equal, kept, after)
  good, metrics = run_scaled(**dict.fromkeys(repa_e.TERMS, 1))
  assert int(metrics['skipped']) == 0 and np.isfinite(metrics['loss'])
  moved = lambda a, b: np.any(np.asarray(a) != np.asarray(b))
  assert any(jax.tree.leaves(jax.tree.map(moved, before.params, good.params)))


# Phases ------------------------------------------------------------------------


def toy_parts():
  """Parts of a few numbers each, in which every loss has a gradient."""
  bn = lambda x, running: (x, jax.tree.map(lambda s: s + 1, running))
  weighted = lambda weights, x: jnp.mean(weights * x)
  return end_to_end.Parts(
      images=lambda batch: batch['image'],
      targets=lambda batch, frozen: (1.0,),
      draw=lambda key, batch: (0.0, objectives.Draw(0.0, 0.0, batch['label'])),
      reconstruct=lambda vae, x, noise: (vae * x, vae * x, jnp.square(vae)),
      perceptual=None,
      discriminate=lambda weights, running, x: bn(weights * x, running),
      hinge=lambda real, fake: jnp.mean(fake - real),
      evaluate=lambda x, running: x,
      train=bn,
      diffusion=lambda params, x, draw: (
          params['model'] * x.mean((1, 2, 3)),
          params['model'] * x,
      ),
      align=lambda params, x, targets: weighted(params['projector'], x),
      align_vae=lambda params, x, targets: weighted(params['projector'], x),
      optimizers={name: optax.sgd(0.1) for name in end_to_end.GROUPS},
      ema=(0.9,),
      weights=dict.fromkeys(('l1', 'kl', 'adversarial', 'alignment'), 1.0),
      discriminator_start=1,
      diffusion_start=2,
      freeze_vae_from=4,
  )


@functools.cache
def phased_steps():
  """Five steps: 0 and 1 the autoencoder alone, from 4 on the model alone."""
  parts, one = toy_parts(), jnp.float32(0.5)
  names = ('model', 'projector', 'vae', 'discriminator')
  state = end_to_end.create(
      dict.fromkeys(names, one),
      {'bn': {'mean': one, 'var': one}, 'disc_bn': {'count': one}},
      parts.optimizers,
      parts.ema,
  )
  batch = {
      'image': jax.random.normal(jax.random.key(0), (2, 4, 4, 3)),
      'label': jnp.zeros(2, jnp.int32),
  }
  step = jax.jit(end_to_end.make_step(parts))
  states, logged = [state], []
  for _ in range(5):
    state, metrics = step(states[-1], batch, (), jax.random.key(0))
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
  counts = [float(s.model_state['disc_bn']['count']) for s in states]
  # Three calls a step; without an adversarial loss pass 1 counts for nothing.
  assert counts == [0.5, 2.5, 5.5, 8.5, 11.5, 11.5]


def same(a, b):
  pairs = jax.tree.map(lambda a, b: np.array_equal(a, b), a, b)
  return all(jax.tree.leaves(pairs))
