"""Three training steps of JiT, with dropout and without, as released."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jit

from irepa_jax import alignment
from irepa_jax.train import schedule
from irepa_jax.train import state as states
from irepa_jax.train import step as steps
from irepa_jax.weights import convert

EPOCH = 10  # steps, so that the stored epochs are whole steps
GAMMA = 0.8
TOLERANCE = 2e-6
# The K third of a qkv bias has next to no gradient: Adam makes steps of its
# rounding noise, each of up to the rate.
K_BIAS_TOLERANCE = 2 * 2e-4 * 3
ORACLES = ('jit_train3', 'jit_train3_context_dropout')


def rates(meta):
  """Returns the released rates of the three steps, which skip epochs."""
  sched = meta['sched']
  rate = schedule.make(
      sched['lr'], warmup=sched['warmup_epochs'] * EPOCH, from_zero=True
  )
  table = rate(jnp.asarray(meta['epochs_fractional']) * EPOCH)
  return lambda count: table[count]


def parts_of(oracle, model, projector):
  """The released recipe; draws and masks travel in place of the labels."""
  args = oracle['meta']['args']
  objective = tiny_jit.objective(args)

  def diffusion(params, x, drawn):
    draw, masks = drawn
    network = tiny_jit.network(model, params)
    if masks:
      network = functools.partial(network, keep=tiny_jit.fed(masks))
    return objective.measured(network, x, draw)

  def align(params, tokens, targets):
    made = projector.apply({'params': params['projector']}, tokens)
    return alignment.alignment_loss(made, targets, (float(args['proj_coeff']),))

  return steps.Parts(
      latents=lambda batch, frozen, key: batch['x'],
      targets=lambda batch, frozen: (
          alignment.spatial_norm(batch['features'], GAMMA),
      ),
      draw=lambda key, x, y: y,
      diffusion=diffusion,
      align=align,
      optimizer=states.make_optimizer(
          lr=rates(oracle['meta']),
          betas=(0.9, 0.95),
          eps=1e-8,
          weight_decay=oracle['meta']['weight_decay'],
      ),
      ema=(args['ema_decay1'], args['ema_decay2']),
  )


def batch_of(entry, args):
  x, draw = tiny_jit.drawn(entry, args)
  features = jnp.asarray(entry['enc_feats'])
  return {'x': x, 'features': features, 'label': (draw, tiny_jit.masks(entry))}


@functools.cache
def trained(name):
  """Returns (model, projector, first state, last state, metrics per step)."""
  oracle = golden_files.load(name)
  model, projector, params = tiny_jit.build(oracle)
  parts = parts_of(oracle, model, projector)
  first = state = states.create(params, parts.optimizer, parts.ema)
  step, logged = jax.jit(steps.make_step(parts)), []
  for i in range(3):
    batch = batch_of(
        golden_files.subset(oracle, f'step{i}'), oracle['meta']['args']
    )
    state, metrics = step(state, batch, (), jax.random.key(0))
    logged.append(metrics)
    if i == 0:
      after_one = state
  return model, projector, first, after_one, state, logged


@pytest.mark.parametrize('name', ORACLES)
def test_three_steps_and_both_averages_as_released(golden, name):
  oracle = golden(name)
  model, projector, _, _, state, logged = trained(name)
  for i, metrics in enumerate(logged):
    entry = golden_files.subset(oracle, f'step{i}')
    stored = {'loss': entry.get('loss', entry.get('total_loss'))}
    if 'cosine' in entry:
      stored |= {'diffusion': entry['denoise_loss']}
      stored |= {'alignment': 0.5 * entry['cosine']}
    for key, wanted in stored.items():
      np.testing.assert_allclose(metrics[key], wanted, rtol=5e-5)
  for params, kind in (
      (state.params, 'after'),
      (state.ema[0], 'ema1'),
      (state.ema[1], 'ema2'),
  ):
    made = convert.to_official(model, projector, params)
    for key, wanted in golden_files.subset(oracle, kind).items():
      value = made[key.removeprefix('net.')]
      limit = np.full(value.shape, TOLERANCE, np.float32)
      if key.endswith('attn.qkv.bias'):
        limit[len(value) // 3 : len(value) // 3 * 2] = K_BIAS_TOLERANCE
      error = sparse(value, wanted) - wanted
      assert (np.abs(error) <= sparse(limit, wanted)).all(), key


def sparse(array, stored):
  """Takes those values of an array that a large tensor is stored by."""
  if array.shape == stored.shape:
    return array
  flat = array.reshape(-1)
  return flat[:: flat.size // 64]


def test_the_first_step_has_a_rate_of_zero():
  _, _, first, after_one, _, _ = trained('jit_train3_context_dropout')
  jax.tree.map(np.testing.assert_array_equal, first.params, after_one.params)
  moments = jax.tree.leaves(after_one.opt_state[0].mu)
  assert sum(bool(m.any()) for m in moments) > 60


def test_gradients_with_dropout_as_released(golden):
  """The tap lies after the class tokens joined."""
  name = 'jit_train3_context_dropout'
  oracle = golden(name)
  model, projector, params = tiny_jit.build(oracle)
  parts = parts_of(oracle, model, projector)
  entry = golden_files.subset(oracle, 'step0')
  batch = batch_of(entry, oracle['meta']['args'])

  def loss(params):
    losses, tokens, _ = parts.diffusion(params, batch['x'], batch['label'])
    return losses.mean() + parts.align(params, tokens, parts.targets(batch, ()))

  found = convert.to_official(model, projector, jax.jit(jax.grad(loss))(params))
  stored = golden_files.subset(entry, 'grad')
  assert len(stored) == len(found) - 1  # pos_embed has none
  for key, wanted in stored.items():
    grad = found[key.removeprefix('net.')]
    if grad.shape != wanted.shape:
      grad = grad.reshape(-1)[:: grad.size // 160]
    limit = 1e-4 * np.abs(wanted).max() + 1e-7
    np.testing.assert_allclose(grad, wanted, atol=limit, rtol=0, err_msg=key)
