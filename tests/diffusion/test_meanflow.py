"""MeanFlow against the official network, loss and sampler, and by identities."""

import dataclasses
import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import alignment
from irepa_jax import models
from irepa_jax.diffusion import meanflow
from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths
from irepa_jax.diffusion import samplers
from irepa_jax.models import projector as projectors
from irepa_jax.train import state as states
from irepa_jax.train import step as steps
from irepa_jax.weights import convert
from irepa_jax.weights import flax_files

NULL = 10  # the label of no class
LOSSES = (
    'default_cfg_w1_k05',
    'cfg_w2_k0',
    'cfg_w1.5_k0.3_interval',
    'noguidance_uniform_p0.5',
)
# Puts the rows with r < t, the last of eight, where ours lie: 3 and 7.
ORDER = {0.75: [0, 1, 2, 6, 3, 4, 5, 7], 0.5: [0, 4, 1, 5, 2, 6, 3, 7]}


@functools.cache
def oracle(name):
  return golden_files.load(name)


@functools.cache
def network(name='meanflow_net', **fields):
  """Returns (model, parameters) of the tiny official network of an oracle."""
  arch = oracle(name)['meta']['arch']
  model = models.create(
      f'SiT-S/{arch["patch_size"]}',
      width=arch['hidden_size'],
      depth=arch['depth'],
      heads=arch['num_heads'],
      num_classes=arch['num_classes'],
      size=arch['input_size'],
      durations=True,
      align_depth=1,
      **fields,
  )
  weights = flax_files.state_dict(golden_files.subset(oracle(name), 'sd'))
  table = oracle('meanflow_net')['pos_embed'][None]
  params = convert.from_torch(model, weights | {'pos_embed': table})
  return model, jax.tree.map(jnp.asarray, params)


def apply_of(model, params):
  """Returns the network as a pytree of its weights."""
  run = lambda params, *inputs: model.apply({'params': params}, *inputs)
  return jax.tree_util.Partial(run, params)


def drawn(case, method, order=None):
  """Returns the objective, the latents and the draw that a case stores."""
  method = {'P_mean': -0.4, 'P_std': 1.0} | method
  pick = lambda x: jnp.asarray(x[order] if order else x)
  guided = method.get('guidance_eq', 'cfg') != ''
  objective = meanflow.MeanFlow(
      null_label=NULL,
      # Without an order of our own the product takes every row.
      data_proportion=method['data_proportion'] if order else 0.0,
      omega=method['omega'] if guided else 1.0,
      kappa=method['kappa'] if guided else 0.0,
      interval=(method['t_start'], method['t_end']),
      power=method['norm_p'],
      eps=method['norm_eps'],
  )
  raw = np.stack([case['draw_t_raw'], case['draw_r_raw']])
  if method.get('noise_dist', 'logit_normal') == 'logit_normal':
    raw = 1 / (1 + np.exp(-(method['P_mean'] + method['P_std'] * raw)))
  t, r = raw.max(0), raw.min(0)
  still = int(len(t) * method['data_proportion'])
  r[:still] = t[:still]
  y = case['y'].copy()
  dropped = case['draw_label_drop_u'] < method['class_dropout_prob']
  y[: dropped.sum()] = NULL
  draw = meanflow.Draw(
      t=pick(t), noise=pick(case['draw_e']), y=pick(y), r=pick(r)
  )
  return objective, pick(case['x']), draw


def near(found, wanted, limit, name=''):
  np.testing.assert_allclose(found, wanted, rtol=0, atol=limit, err_msg=name)


def largest(x):
  return np.abs(x).max()


def test_the_network_and_its_forward_product():
  wanted = oracle('meanflow_net')
  model, params = network()
  apply = jax.jit(apply_of(model, params))
  u, _ = apply(*(jnp.asarray(wanted[k]) for k in ('x', 't', 'y', 'h')))
  near(u, wanted['u'], 2e-5)
  x, t, r, y = (
      jnp.asarray(wanted[k]) for k in ('x', 'jvp/t', 'jvp/r', 'y')
  )
  ones = jnp.ones_like(t)
  along = (jnp.asarray(wanted['jvp/tangent_z']), ones, ones)
  u, du = jax.jvp(lambda x, t, h: apply(x, t, y, h)[0], (x, t, t - r), along)
  near(u, wanted['jvp/u'], 2e-5)
  near(du, wanted['jvp/du_dt'], 2e-4 * largest(wanted['jvp/du_dt']))


def test_the_forward_product_is_a_central_difference():
  wanted = oracle('meanflow_net')
  model, params = network()
  apply = apply_of(model, params)
  x, t, r, y, v = (
      jnp.asarray(wanted[k])
      for k in ('x', 'jvp/t', 'jvp/r', 'y', 'jvp/tangent_z')
  )
  u = jax.jit(
      lambda s: apply(x + s * v, t + s, y, t + s - r)[0]
  )
  step = 0.01  # float32: rounding over 0.02, and its square, are below 2e-4
  slope = (u(step) - u(-step)) / (2 * step)
  near(slope, wanted['jvp/du_dt'], 2e-3 * largest(wanted['jvp/du_dt']))


@pytest.mark.parametrize(
    'name, subset',
    [(name, False) for name in LOSSES] + [(name, True) for name in LOSSES[:3]],
)
def test_losses_and_gradients_as_released(name, subset):
  file = oracle('meanflow_loss')
  case = golden_files.subset(file, f'case/{name}')
  method = file['meta']['defaults'] | file['meta']['cases'][name]
  order = ORDER[method['data_proportion']] if subset else None
  case |= {'x': file['x'], 'y': file['y']}
  objective, x, draw = drawn(case, method, order)
  order = order or list(range(8))
  model, params = network('meanflow_loss')

  def total(params):
    terms, _ = objective.terms(apply_of(model, params), x, draw)
    return objective.weighted(terms).mean(), terms

  (loss, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(
      params
  )
  near(draw.t, case['t'][order], 1e-6)
  near(draw.r, case['r'][order], 1e-6)
  near(terms.u, case['u'][order], 2e-5)
  near(terms.guided, case['v_g'][order], 2e-5)
  slope = case['du_dt'][order]
  if subset:  # the product leaves the others out
    slope[np.asarray(draw.r == draw.t)] = 0
  near(terms.derivative, slope, 2e-4 * largest(slope))
  near(terms.target, case['u_tgt'][order], 2e-4 * largest(case['u_tgt']))
  np.testing.assert_allclose(loss, case['loss'], rtol=2e-5)
  check_gradients(grads, golden_files.subset(case, 'grad'))


def check_gradients(grads, wanted):
  """Compares gradients of the model with those of a flax oracle."""
  found = convert.to_torch(network()[0], grads)
  wanted = flax_files.state_dict(wanted)
  assert wanted
  for name, grad in wanted.items():
    near(found[name], grad, 5e-4 * largest(grad) + 1e-7, name)


def aligned(name):
  """Returns (projector, its parameters, coefficient, gamma) of a case."""
  file = oracle('meanflow_align')
  meta, case = file['meta'], file['meta']['cases'][name]
  projector = projectors.Projectors(
      case['projector'],
      in_width=meta['arch']['hidden_size'],
      widths=(meta['z_dim'],),
      grid=(4, 4),
      hidden=meta['projector_dim'],
      kernel=meta['kernel'],
  )
  weights = golden_files.subset(file, f'case/{name}/projector')
  named = {f'projectors.0.projection_layer.{k}': v for k, v in weights.items()}
  params = jax.tree.map(jnp.asarray, convert.from_torch(projector, named))
  return projector, params, case['coeff'], case['gamma']


def parts_of(name):
  """Returns the parts of a step of a case, its draws in place of labels."""
  file = oracle('meanflow_align')
  method = file['meta']['cases'][name]['method']
  model, _ = network('meanflow_align')
  projector, _, coefficient, gamma = aligned(name)
  any_row = golden_files.subset(file, FIRST[name])
  objective, _, _ = drawn(any_row, method, ORDER[0.75])

  def targets(batch, frozen):
    del frozen
    z = batch['features']
    return (z if gamma is None else alignment.spatial_norm(z, gamma),)

  def align(params, tokens, targets):
    made = projector.apply({'params': params['projector']}, tokens)
    return alignment.alignment_loss(made, targets, (coefficient,))

  return steps.Parts(
      latents=lambda batch, frozen, key: batch['x'],
      targets=targets,
      draw=lambda key, x, y: y,
      diffusion=lambda params, x, draw: objective.measured(
          apply_of(model, params['model']), x, draw
      ),
      align=align,
      optimizer=states.make_optimizer(
          lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
      ),
      ema=(0.9999,),
  )


FIRST = {'repa': 'case/repa', 'irepa_train3': 'case/irepa_train3/step0'}


def batch_of(name, prefix):
  case = golden_files.subset(oracle('meanflow_align'), prefix)
  method = oracle('meanflow_align')['meta']['cases'][name]['method']
  _, x, draw = drawn(case, method, ORDER[0.75])
  features = jnp.asarray(case['enc_feats'][ORDER[0.75]])
  return {'x': x, 'features': features, 'label': draw}, case


def state_of(name, parts):
  params = {
      'model': network('meanflow_align')[1],
      'projector': aligned(name)[1],
  }
  return states.create(params, parts.optimizer, parts.ema)


@pytest.mark.parametrize('name', FIRST)
def test_alignment_as_composed_of_the_released_parts(name):
  parts = parts_of(name)
  batch, case = batch_of(name, FIRST[name])
  params = state_of(name, parts).params
  targets = parts.targets(batch, ())

  def total(params):
    losses, tokens, _ = parts.diffusion(params, batch['x'], batch['label'])
    align = parts.align(params, tokens, targets)
    return losses.mean() + align, (losses.mean(), align, tokens)

  (loss, (flow, align, tokens)), grads = jax.jit(
      jax.value_and_grad(total, has_aux=True)
  )(params)
  coefficient = aligned(name)[2]
  near(tokens, case['tokens'][ORDER[0.75]], 2e-5)
  near(targets[0], case['target'][ORDER[0.75]], 2e-5)
  near(align, coefficient * case['align_loss'], 1e-6)
  np.testing.assert_allclose(flow, case['flow_loss'], rtol=2e-5)
  np.testing.assert_allclose(loss, case['total_loss'], rtol=2e-5)
  stored = golden_files.subset(case, 'grad')
  check_gradients(grads['model'], golden_files.subset(stored, 'model'))
  found = convert.to_torch(aligned(name)[0], grads['projector'])
  for key, grad in golden_files.subset(stored, 'projector').items():
    ours = found[f'projectors.0.projection_layer.{key}']
    near(ours, grad, 5e-4 * largest(grad) + 1e-7, key)


def test_three_steps_with_alignment():
  parts = parts_of('irepa_train3')
  step, state = jax.jit(steps.make_step(parts)), state_of('irepa_train3', parts)
  for i in range(3):
    batch, case = batch_of('irepa_train3', f'case/irepa_train3/step{i}')
    state, metrics = step(state, batch, (), jax.random.key(0))
    np.testing.assert_allclose(metrics['loss'], case['total_loss'], rtol=2e-5)
    np.testing.assert_allclose(
        metrics['grad_norm'], case['grad_norm'], rtol=1e-4
    )
  for params, stored in ((state.params, 'after'), (state.ema[0], 'ema')):
    wanted = golden_files.subset(
        oracle('meanflow_align'), f'case/irepa_train3/{stored}'
    )
    close_weights(params, wanted)


def close_weights(params, wanted):
  found = convert.to_torch(network()[0], params['model'])
  flax = flax_files.state_dict(golden_files.subset(wanted, 'model'))
  for name, array in flax.items():
    limit = np.full(array.shape, 1e-5)
    if name.endswith('qkv.bias'):  # K third: Adam steps of rounding noise
      limit.reshape(3, -1)[1] = 2 * 1e-4 * 3
    assert (abs(found[name] - array) <= limit).all(), name
  found = convert.to_torch(aligned('irepa_train3')[0], params['projector'])
  for key, array in golden_files.subset(wanted, 'projector').items():
    near(found[f'projectors.0.projection_layer.{key}'], array, 1e-5, key)


@pytest.mark.parametrize('steps_', [1, 2])
def test_samples_as_released(steps_):
  case = golden_files.subset(oracle('meanflow_sample'), f'case/step{steps_}')
  velocity = meanflow.MeanFlow(null_label=NULL).as_velocity(
      apply_of(*network()), steps_
  )
  sampled = samplers.guided(
      velocity, jnp.asarray(case['labels']), scale=1.0, null_label=NULL
  )
  x = samplers.euler(sampled, jnp.asarray(case['draw_z']), steps=steps_)
  near(x, case['sample'], 5e-5)


# Identities --------------------------------------------------------------------


@functools.cache
def batch():
  keys = jax.random.split(jax.random.key(5), 2)
  return jax.random.normal(keys[0], (16, 8, 8, 4)), jnp.arange(16) % NULL


def test_with_equal_times_it_is_flow_matching():
  x, y = batch()
  ours = meanflow.MeanFlow(null_label=NULL, data_proportion=1.0, power=0.0)
  draw = ours.draw(jax.random.key(0), x, y)
  np.testing.assert_array_equal(draw.r, draw.t)
  flow = objectives.FlowMatching(null_label=NULL)
  plain = objectives.Draw(draw.t, draw.noise, draw.y)
  apply = apply_of(*network())
  instant = lambda z, t, y: apply(z, t, y, jnp.zeros_like(t))
  wanted = jax.jit(lambda: flow.loss(instant, x, plain)[0])()
  losses = jax.jit(lambda: ours.loss(apply, x, draw)[0])()
  # A sum over 256 values against their mean.
  np.testing.assert_allclose(losses, 256 * wanted, rtol=1e-5)


def test_omega_1_and_kappa_0_is_no_guidance():
  x, y = batch()
  calls = []

  def run(weight, z, t, y, h):
    calls.append(h)
    return weight * z * (y + 1).astype(z.dtype).reshape(-1, 1, 1, 1), None

  apply = jax.tree_util.Partial(run, jnp.float32(0.1))
  none = meanflow.MeanFlow(null_label=NULL)
  draw = none.draw(jax.random.key(0), x, y)

  def guided(**settings):
    calls.clear()
    objective = dataclasses.replace(none, **settings)
    return objective.terms(apply, x, draw)[0].guided, len(calls)

  velocity = paths.velocity(x, draw.noise, draw.t)
  plain, passes = guided()
  np.testing.assert_array_equal(plain, velocity)
  assert passes == 2  # the prediction and the product
  outside, passes = guided(omega=2.0, interval=(0.0, 0.0))
  np.testing.assert_array_equal(outside, velocity)
  assert passes == 3
  z = paths.interpolate(x, draw.noise, draw.t)
  null = 0.1 * (NULL + 1) * z
  labels = np.float32(draw.y + 1).reshape(-1, 1, 1, 1)
  conditional = 0.1 * labels * z
  dropped = np.asarray(draw.y == NULL).reshape(-1, 1, 1, 1)
  for settings, wanted in (
      (dict(omega=2.0), 2 * velocity - null),
      (dict(kappa=0.5), velocity - 0.5 * null + 0.5 * conditional),
  ):
    near(
        guided(**settings)[0], np.where(dropped, velocity, wanted), 2e-5
    )


def test_many_steps_approach_the_ode():
  apply = apply_of(*network())
  noise, y = batch()[0][:3], jnp.arange(3)
  objective = meanflow.MeanFlow(null_label=NULL)
  instant = lambda x, t: apply(
      x, jnp.full(3, t), y, jnp.zeros(3)
  )[0]
  ode = jax.jit(lambda x: samplers.heun(instant, x, steps=64))(noise)

  @functools.partial(jax.jit, static_argnums=0)
  def sampled(count):
    velocity = samplers.guided(
        objective.as_velocity(apply, count), y, scale=1.0, null_label=NULL
    )
    return samplers.euler(velocity, noise, steps=count)

  errors = [float(abs(sampled(n) - ode).max()) for n in (16, 64, 256)]
  # Of first order, as the velocity at h = 1 / n is off by its slope over n.
  assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


@pytest.mark.parametrize('share', [0.0, 0.5, 0.6, 0.75, 1.0])
def test_the_share_is_exact_and_the_rows_are_spread(share):
  objective = meanflow.MeanFlow(null_label=NULL, data_proportion=share)
  x, y = jnp.zeros((8000, 1)), jnp.arange(8000) % NULL
  draw = objective.draw(jax.random.key(0), x, y)
  assert (draw.r <= draw.t).all() and (draw.r >= 0).all()
  still = np.asarray(draw.r == draw.t).reshape(-1, objective.group)
  assert (still.sum(1) == round(share * objective.group)).all()
  dropped = np.asarray(draw.y == NULL)
  assert abs(dropped.mean() - 0.1) < 0.02
  np.testing.assert_array_equal(draw.y[~dropped], y[~dropped])
  if share:
    assert not dropped[~still.reshape(-1)].any()
  # t is the later of two logit-normal times: below sigmoid(0.5448) each is with
  # probability sqrt(1/2).
  assert abs(np.median(draw.t) - 1 / (1 + np.exp(-0.5448))) < 0.02


def test_more_labels_than_equal_times_can_be_dropped():
  objective = meanflow.MeanFlow(
      null_label=NULL, data_proportion=0.25, label_dropout=0.5
  )
  x, y = jnp.zeros((8000, 1)), jnp.arange(8000) % NULL
  draw = objective.draw(jax.random.key(0), x, y)
  dropped = np.asarray(draw.y == NULL)
  assert dropped[np.asarray(draw.r == draw.t)].all()
  assert abs(dropped.mean() - 0.5) < 0.02


def test_rows_that_do_not_divide_over_the_devices_all_take_part():
  x, y = batch()
  apply = apply_of(*network())
  one = meanflow.MeanFlow(null_label=NULL, omega=1.0, kappa=0.5)
  eight = dataclasses.replace(one, shards=8)  # 4 rows with r < t on 8 devices
  draw = one.draw(jax.random.key(0), x, y)
  terms = lambda objective: jax.jit(
      lambda: objective.terms(apply, x, draw)[0]
  )()
  few, all_ = terms(one), terms(eight)
  still = np.asarray(draw.r == draw.t)
  assert not few.derivative[still].any() and all_.derivative[still].any()
  near(few.guided, all_.guided, 2e-6)
  near(few.target, all_.target, 2e-6 * largest(all_.target))


def test_what_is_logged_shows_a_run_that_breaks():
  x, y = batch()
  objective = meanflow.MeanFlow(null_label=NULL)
  draw = objective.draw(jax.random.key(0), x, y)
  # A network of one number: u = weight * z.
  apply = jax.tree_util.Partial(
      lambda weight, z, t, y, h: (weight * z, None), jnp.float32(100)
  )
  losses, _, seen = objective.measured(apply, x, draw)
  np.testing.assert_allclose(losses, 1, rtol=1e-4)
  assert seen['outliers'] == 1 and seen['error'] > meanflow.OUTLIER
  # du/dt along the velocity: 100 times it.
  moves = np.asarray(draw.r < draw.t)
  velocity = paths.velocity(x, draw.noise, draw.t)
  wanted = 100 * np.sqrt(np.mean(velocity[moves] ** 2))
  np.testing.assert_allclose(seen['derivative'], wanted, rtol=1e-5)


# Improved MeanFlow -------------------------------------------------------------


@functools.cache
def improved():
  """Returns (objective, network over its weights) with guidance as an input."""
  model = network()[0].clone(guidances=True)
  objective = meanflow.ImprovedMeanFlow(null_label=NULL, data_proportion=0.5)
  shapes = convert.param_shapes(model)
  draw = np.random.default_rng(0).normal
  params = jax.tree.map(
      lambda s: jnp.asarray(0.1 * draw(size=s.shape), jnp.float32), shapes
  )
  return objective, apply_of(model, params)


def test_the_improved_target_as_its_paper_has_it():
  objective, apply = improved()
  x, y = batch()
  draw = objective.draw(jax.random.key(3), x, y)
  terms = jax.jit(lambda: objective.terms(apply, x, draw)[0])()
  z = paths.interpolate(x, draw.noise, draw.t)
  v = paths.velocity(x, draw.noise, draw.t)
  scale, low, high = np.asarray(draw.given[0]).T
  moves = np.asarray(draw.r < draw.t)
  assert not low[~moves].any() and (high[~moves] == 1).all()
  inside = (low <= draw.t) & (draw.t <= high)
  scale = jnp.where(inside, scale, 1)
  zero, one = jnp.zeros(16), jnp.ones(16)
  at = lambda y, w: apply(
      z, draw.t, y, zero, jnp.stack([w, zero, one], axis=1)
  )[0]
  own, null = at(draw.y, scale), at(jnp.full_like(draw.y, NULL), one)
  labelled = (draw.y != NULL) & True
  share = jnp.where(labelled, 1 - 1 / scale, 0).reshape(-1, 1, 1, 1)
  wanted = v + share * (own - null)
  near(terms.guided, wanted, 1e-5 * largest(wanted))
  step = 0.005
  u = lambda s: apply(
      z + s * own, draw.t + s, draw.y, draw.t + s - draw.r, *draw.given
  )[0]
  slope = (u(step) - u(-step)) / (2 * step)
  slope = np.where(moves.reshape(-1, 1, 1, 1), slope, 0)
  near(terms.derivative, slope, 5e-3 * largest(slope))


def test_the_scale_of_the_guidance_is_log_uniform():
  objective, _ = improved()
  x, y = jnp.zeros((8000, 1)), jnp.zeros(8000, jnp.int32)
  guidance = objective.draw(jax.random.key(0), x, y).given[0]
  scale, low, high = np.asarray(guidance).T
  shares = [0.1, 0.5, 0.9]
  np.testing.assert_allclose(
      np.quantile(np.log(scale) / np.log(8), shares), shares, atol=0.02
  )
  assert (low >= 0).all() and (low <= 0.5).all()
  assert (high >= 0.5).all() and (high <= 1).all()


def test_an_improved_network_is_told_the_guidance():
  objective, apply = improved()
  noise, y = batch()[0][:2], jnp.arange(2)
  velocity = objective.as_velocity(apply, 1, guidance=(4.0, 0.1, 0.9))
  guidance = jnp.tile(jnp.float32([4.0, 0.1, 0.9]), (2, 1))
  ones = jnp.ones(2)
  wanted = apply(noise, ones, y, ones, guidance)[0]
  np.testing.assert_array_equal(velocity(noise, ones, y)[0], wanted)
