"""Flow matching against the released loss, and the statistics of its draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sit

from irepa_jax import alignment
from irepa_jax.data import latents
from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths
from irepa_jax.weights import convert

LOSSES = (
    'sit_loss_linear_uniform_conv',
    'sit_loss_cosine_lognormal_mlp',
    'sit_loss_linear_lognormal_linear_2enc',
)


def drawn(oracle):
  """Returns the path, the latents and the draw that an oracle stores."""
  meta = oracle['meta']
  path = paths.PATHS[meta['path_type']]
  x = latents.normalise(
      latents.sample(
          tiny_sit.last(oracle['moments']),
          tiny_sit.last(oracle['draw_posterior_noise']),
      ),
      oracle['latents_bias'].reshape(-1),
      oracle['latents_scale'].reshape(-1),
  )
  t = jnp.asarray(oracle['draw_time'])
  t = path.time(jnp.exp(t)) if meta['weighting'] == 'lognormal' else t
  dropped = oracle['draw_label_drop_u'] < meta['class_dropout_prob']
  y = np.where(dropped, meta['cfg']['num_classes'], oracle['y'])
  noise = tiny_sit.last(oracle['draw_noise'])
  return path, x, objectives.Draw(t, noise, jnp.asarray(y, jnp.int32))


def total_loss(params, oracle, model, projector):
  """Returns the released total loss and its parts."""
  meta = oracle['meta']
  path, x, draw = drawn(oracle)
  objective = objectives.FlowMatching(
      null_label=meta['cfg']['num_classes'], path=path
  )
  losses, tokens = objective.loss(tiny_sit.network(model, params), x, draw)
  feats = [
      jnp.asarray(oracle[f'enc_feats/{k}'])
      for k in range(len(meta['cfg']['z_dims']))
  ]
  if meta['zscore_alpha'] is not None:
    norm = functools.partial(
        alignment.spatial_norm, gamma=meta['zscore_alpha']
    )
    feats = list(map(norm, feats))
  # The released coefficients belong to kinds of loss, here all cosine.
  coefficient = sum(map(float, meta['proj_coeff'].split(',')))
  align = alignment.alignment_loss(
      projector.apply({'params': params['projector']}, tokens),
      feats,
      (coefficient,),
  )
  return jnp.mean(losses) + align, (losses, align)


@pytest.mark.parametrize('name', LOSSES)
def test_draws_as_released(golden, name):
  oracle = golden(name)
  path, x, draw = drawn(oracle)
  np.testing.assert_allclose(
      x, tiny_sit.last(oracle['x_latent']), atol=1e-6, rtol=1e-6
  )
  np.testing.assert_allclose(draw.t, oracle['t'], rtol=1e-6)
  np.testing.assert_allclose(
      paths.interpolate(x, draw.noise, draw.t, path),
      tiny_sit.last(oracle['model_input']),
      atol=1e-6,
  )


@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_every_gradient_as_released(golden, name):
  oracle = golden(name)
  model, projector, params = tiny_sit.build(oracle)
  loss = functools.partial(
      total_loss, oracle=oracle, model=model, projector=projector
  )
  (total, (losses, align)), grads = jax.jit(
      jax.value_and_grad(loss, has_aux=True)
  )(params)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
  close(losses, oracle['denoising_loss_per_sample'])
  close(align, oracle['proj_loss_weighted'])
  close(total, oracle['total_loss'])
  found = convert.to_official(model, projector, grads)
  assert not found.pop('pos_embed').any()
  assert {f'grad/{k}' for k in found} == {
      k for k in oracle if k.startswith('grad/')
  }
  for key, grad in found.items():
    wanted = oracle[f'grad/{key}']
    limit = 1e-4 * np.abs(wanted).max() + 1e-7
    np.testing.assert_allclose(grad, wanted, atol=limit, rtol=0, err_msg=key)


@pytest.mark.parametrize('prediction', ['v', 'x', 'eps'])
def test_a_perfect_network_has_no_loss_and_the_right_velocity(prediction):
  objective = objectives.FlowMatching(
      null_label=10, path=paths.cosine, prediction=prediction
  )
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  draw = objective.draw(jax.random.key(1), x, jnp.arange(3))
  apply = lambda x_t, t, y: (objective.target(x, draw), None)
  losses, _ = objective.loss(apply, x, draw)
  np.testing.assert_array_equal(losses, np.zeros(3))
  x_t = paths.interpolate(x, draw.noise, draw.t, paths.cosine)
  v, _ = objective.as_velocity(apply)(x_t, draw.t, draw.y)
  np.testing.assert_allclose(
      v,
      paths.velocity(x, draw.noise, draw.t, paths.cosine),
      atol=1e-4,
  )


SPACES = ('v', 'x', 'eps')


@pytest.mark.parametrize('path', paths.PATHS)
@pytest.mark.parametrize('space', SPACES)
@pytest.mark.parametrize('prediction', SPACES)
def test_every_pair_of_prediction_and_loss_space(prediction, space, path):
  """The loss is the mean square between both, converted to the loss space."""
  path = paths.PATHS[path]
  objective = objectives.FlowMatching(
      null_label=10, path=path, prediction=prediction, loss_space=space
  )
  k_x, k_out, k_draw = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(k_x, (3, 4, 4, 2))
  output = jax.random.normal(k_out, x.shape)
  draw = objective.draw(k_draw, x, jnp.arange(3))
  draw = draw._replace(t=jnp.array([0.2, 0.5, 0.8]))  # floors do not matter
  x_t = paths.interpolate(x, draw.noise, draw.t, path)
  losses, _ = objective.loss(lambda *_: (output, None), x, draw)
  converted = paths.convert(
      output, x_t, draw.t, path, source=prediction, target=space
  )
  truth = {
      'v': paths.velocity(x, draw.noise, draw.t, path),
      'x': x,
      'eps': draw.noise,
  }[space]
  wanted = jnp.square(converted - truth).mean((1, 2, 3))
  np.testing.assert_allclose(losses, wanted, rtol=2e-5)
  v, _ = objective.as_velocity(lambda *_: (output, None))(x_t, draw.t, draw.y)
  wanted = paths.convert(
      output, x_t, draw.t, path, source=prediction, target='v'
  )
  np.testing.assert_allclose(v, wanted, atol=2e-5)


@pytest.mark.parametrize('prediction', SPACES)
def test_a_loss_space_that_is_the_prediction_changes_no_bit(prediction):
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  make = lambda space: objectives.FlowMatching(
      null_label=10, prediction=prediction, loss_space=space
  )
  draw = make('').draw(jax.random.key(1), x, jnp.arange(3))
  draw = draw._replace(t=jnp.array([0.001, 0.5, 0.999]))
  apply = lambda x_t, t, y: (jnp.sin(x_t), None)
  one, other = (make(s).loss(apply, x, draw)[0] for s in ('', prediction))
  np.testing.assert_array_equal(one, other)


def test_the_divisor_is_floored_near_the_data():
  """JiT: |x - x'|^2 / max(t, 0.05)^2 and v = (x_t - x') / max(t, 0.05)."""
  objective = objectives.FlowMatching(
      null_label=10, prediction='x', loss_space='v', floor=0.05
  )
  x, t = jnp.ones((2, 4)), jnp.array([0.01, 0.1])
  draw = objectives.Draw(t, 3 * x, jnp.arange(2))
  apply = lambda x_t, t, y: (2 * x, None)
  losses, _ = objective.loss(apply, x, draw)
  np.testing.assert_allclose(losses, [1 / 0.05**2, 1 / 0.1**2], rtol=1e-6)
  x_t = paths.interpolate(x, draw.noise, t)
  v, _ = objective.as_velocity(apply)(x_t, t, draw.y)
  wanted = (x_t - 2 * x) / jnp.array([[0.05], [0.1]])
  np.testing.assert_allclose(v, wanted, rtol=1e-6)


def test_noise_has_the_scale_asked_for():
  x, y = jnp.zeros((1000, 8)), jnp.zeros(1000, jnp.int32)
  draw = lambda scale: objectives.FlowMatching(
      null_label=7, noise_scale=scale
  ).draw(jax.random.key(0), x, y)
  np.testing.assert_array_equal(draw(2.0).noise, 2 * draw(1.0).noise)


def test_dropout_is_a_function_of_row_block_and_place():
  objective = objectives.FlowMatching(null_label=7, dropout=True)
  plain = objectives.FlowMatching(null_label=7)
  x, y = jnp.zeros((4, 2, 2, 3)), jnp.zeros(4, jnp.int32)
  draw = objective.draw(jax.random.key(0), x, y)
  for a, b in zip(draw[:3], plain.draw(jax.random.key(0), x, y)[:3], strict=True):
    np.testing.assert_array_equal(a, b)  # dropout changes no other draw
  shape = (4, 50, 40)
  kept = functools.partial(
      objectives.kept, probability=0.8, shape=shape
  )
  one = kept(draw.dropout, 3, 'attn_out')
  assert abs(float(one.mean()) - 0.8) < 0.02
  swapped = kept(draw.dropout[::-1], jnp.int32(3), 'attn_out')
  np.testing.assert_array_equal(one, swapped[::-1])
  for other in (
      kept(draw.dropout, 4, 'attn_out'),
      kept(draw.dropout, 3, 'mlp_hidden'),
      kept(draw.dropout[::-1], 3, 'attn_out'),
  ):
    assert (one != other).mean() > 0.2


@pytest.mark.parametrize('dropout', [0.0, 0.1, 0.5])
def test_label_dropout_obeys_its_setting(dropout):
  objective = objectives.FlowMatching(null_label=7, label_dropout=dropout)
  x, y = jnp.zeros((4000, 1)), jnp.arange(4000) % 7
  draw = objective.draw(jax.random.key(0), x, y)
  dropped = draw.y == 7
  assert abs(float(dropped.mean()) - dropout) < 0.03
  np.testing.assert_array_equal(draw.y[~dropped], y[~dropped])


@pytest.mark.parametrize('path', paths.PATHS)
@pytest.mark.parametrize('name', objectives.TIMES)
def test_distributions_of_time(name, path):
  mean, std = 0.5, 0.8
  path = paths.PATHS[path]
  t = objectives.TIMES[name](
      jax.random.key(0), 20_000, path, mean=mean, std=std
  )
  assert t.min() >= 0 and t.max() <= 1
  if name == 'uniform':
    shares = [0.2, 0.7]
    np.testing.assert_allclose(np.quantile(t, shares), shares, atol=0.02)
    return
  ratio = jnp.log(path.sigma(t) / path.alpha(t))
  wanted = (mean, std) if name == 'logit_normal' else (0, 1)
  np.testing.assert_allclose([ratio.mean(), ratio.std()], wanted, atol=0.03)


@pytest.mark.parametrize('path', paths.PATHS)
@pytest.mark.parametrize('mean', [-200.0, -90.0, 80.0, 90.0, 1000.0])
def test_extreme_means_of_time_are_data_or_noise(mean, path):
  path = paths.PATHS[path]
  t = objectives.logit_normal(jax.random.key(0), 64, path, mean=mean)
  np.testing.assert_allclose(t, float(mean > 0), atol=1e-6)


def test_times_on_the_linear_path_are_a_sigmoid():
  t = objectives.logit_normal(jax.random.key(1), 512, paths.linear, mean=2.0, std=9.0)
  normal = jax.random.normal(jax.random.key(1), (512,))
  np.testing.assert_allclose(t, jax.nn.sigmoid(2 + 9 * normal), rtol=1e-5)


def test_draws_do_not_depend_on_the_sharding():
  objective = objectives.FlowMatching(null_label=7, dropout=True)
  x, y = jnp.zeros((8, 4, 4, 2)), jnp.zeros(8, jnp.int32)
  mesh = jax.make_mesh((8,), ('data',))
  rows = jax.NamedSharding(mesh, jax.P('data'))
  one = jax.jit(objective.draw)(jax.random.key(3), x, y)
  eight = jax.jit(objective.draw, out_shardings=rows)(
      jax.random.key(3), *jax.device_put((x, y), rows)
  )
  for a, b in zip(one[:3], eight[:3], strict=True):
    np.testing.assert_array_equal(a, b)
  data = jax.random.key_data
  np.testing.assert_array_equal(data(one.dropout), data(eight.dropout))
