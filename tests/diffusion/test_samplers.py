"""Samplers and guidance: the released ones, exact solutions, identities."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sit

from irepa_jax import errors
from irepa_jax.diffusion import paths
from irepa_jax.diffusion import samplers

CASES = golden_files.load('sit_samplers')['meta']['cases']
NULL = 1000


def parse(case):
  """Returns (sampler, settings, guidance scale, interval) of a case name."""
  kind, rest = case.split('/')
  parts = {p.rstrip('0123456789.'): p for p in rest.split('_')}
  number = lambda key: float(parts[key][len(key) :])
  interval = (number('lo'), number('hi'))
  settings = {'steps': int(number('n'))}
  if kind == 'sde':
    settings['path'] = paths.PATHS[rest.split('_')[-1]]
    return samplers.euler_maruyama, settings, number('cfg'), interval
  ode = samplers.heun if number('heun') else samplers.euler
  return ode, settings, number('cfg'), interval


@pytest.fixture(scope='module')
def network():
  oracle = golden_files.load('sit_samplers')
  model, _, params = tiny_sit.build(oracle)
  return tiny_sit.network(model, params)


@pytest.mark.parametrize('case', CASES)
def test_as_released(golden, network, case):
  oracle = golden('sit_samplers')
  sampler, settings, scale, interval = parse(case)
  if f'{case}/draws' in oracle:
    settings['noises'] = tiny_sit.last(oracle[f'{case}/draws'])

  def sample(x, y):
    velocity = samplers.guided(
        network, y, scale=scale, interval=interval, null_label=NULL
    )
    return sampler(velocity, x, **settings)

  x = jax.jit(sample)(
      tiny_sit.last(oracle['latents']), jnp.asarray(oracle['y'], jnp.int32)
  )
  wanted = tiny_sit.last(oracle[case])
  # The oracle allows 5e-4 for a float32 state; 2e-7 was measured.
  np.testing.assert_allclose(x, wanted, atol=5e-6 * np.abs(wanted).max())


def gaussian(path, mean=2.0, std=0.5):
  """Returns the exact velocity when the data is normal."""

  def velocity(x, t):
    alpha, sigma = path.alpha(t), path.sigma(t)
    variance = alpha**2 * std**2 + sigma**2
    slope = path.d_alpha(t) * alpha * std**2 + path.d_sigma(t) * sigma
    return path.d_alpha(t) * mean + slope / variance * (x - alpha * mean)

  return velocity


@pytest.mark.parametrize('steps', [1, 7])
def test_euler_recovers_data_for_the_exact_velocity(steps):
  x, noise = jnp.full((2, 3), 5.0), jnp.full((2, 3), -1.0)
  found = samplers.euler(lambda x_t, t: noise - x, noise, steps=steps)
  np.testing.assert_allclose(found, x, rtol=1e-6)


def test_heun_is_of_second_order():
  x = jax.random.normal(jax.random.key(0), (1, 64))
  velocity = gaussian(paths.linear)
  exact = 2 + 0.5 * x
  error = lambda sampler, steps: float(
      jnp.abs(sampler(velocity, x, steps=steps) - exact).max()
  )
  assert error(samplers.euler, 40) / error(samplers.euler, 80) < 2.5
  assert error(samplers.heun, 40) / error(samplers.heun, 80) > 3
  assert error(samplers.heun, 80) < 1e-3


@pytest.mark.parametrize('path', paths.PATHS)
def test_euler_maruyama_draws_from_the_data(path):
  path = paths.PATHS[path]
  k_start, k_noise = jax.random.split(jax.random.key(0))
  x = jax.random.normal(k_start, (4, 5000))
  found = samplers.euler_maruyama(
      gaussian(path), x, steps=100, path=path, key=k_noise
  )
  np.testing.assert_allclose(found.mean(), 2, atol=0.02)
  np.testing.assert_allclose(found.std(), 0.5, atol=0.03)


def test_noise_of_an_image_depends_on_its_key_alone():
  keys = jax.random.split(jax.random.key(1), 5)
  x = jax.random.normal(jax.random.key(0), (5, 4, 4, 2))
  sample = functools.partial(
      samplers.euler_maruyama, gaussian(paths.linear), steps=6
  )
  whole = sample(x, key=keys)
  part = sample(x[3:], key=keys[3:])
  np.testing.assert_allclose(whole[3:], part, rtol=1e-6)
  assert not np.allclose(whole, sample(x, key=jax.random.key(2)))
  raw = sample(x, key=jax.random.PRNGKey(2))
  np.testing.assert_array_equal(raw, sample(x, key=jax.random.key(2)))


def test_one_step_of_euler_maruyama_draws_nothing():
  x = jnp.ones((2, 3))
  velocity = gaussian(paths.linear)
  first, second = (
      samplers.euler_maruyama(velocity, x, steps=1, key=jax.random.key(seed))
      for seed in (0, 1)
  )
  np.testing.assert_array_equal(first, second)


def labelled(calls):
  """Returns a network that counts the rows it sees."""

  def apply(x, t, y):
    jax.debug.callback(lambda rows: calls.append(rows), len(y))
    del t
    return x * (y[:, None] + 1).astype(jnp.float32), None

  return apply


def rows_seen(sampler, steps, **guidance):
  calls, x = [], jnp.ones((2, 3))
  velocity = samplers.guided(
      labelled(calls), jnp.array([0, 1]), null_label=9, **guidance
  )
  jax.block_until_ready(sampler(velocity, x, steps=steps))
  jax.effects_barrier()
  return sum(int(c) for c in calls)


def test_scale_one_is_the_identity_at_the_cost_of_one_pass():
  x, t = jax.random.normal(jax.random.key(0), (2, 3)), jnp.float32(0.5)
  y = jnp.array([0, 1])
  plain = samplers.guided(labelled([]), y, scale=1.0, null_label=9)
  np.testing.assert_array_equal(plain(x, t), labelled([])(x, None, y)[0])
  assert rows_seen(samplers.euler, 4, scale=1.0) == 4 * 2


def test_guidance_costs_double_inside_its_interval_only():
  guidance = dict(scale=2.0, interval=(0.5, 0.75))  # t = 1, .75, .5, .25
  assert rows_seen(samplers.euler, 4, **guidance) == 2 * 2 + 2 * 4
  # Heun evaluates twice at t = 1, .75, .5 and decides at the start of a step.
  assert rows_seen(samplers.heun, 4, **guidance) == 2 * 2 + 4 * 4 + 2


@pytest.mark.parametrize('null_label', [3, 1000])
def test_guidance_extrapolates_from_the_null_label(null_label):
  x, y = jnp.ones((2, 3)), jnp.array([0, 1])
  apply = labelled([])
  velocity = samplers.guided(apply, y, scale=3.0, null_label=null_label)
  v_y, _ = apply(x, None, y)
  v_null, _ = apply(x, None, jnp.full(2, null_label))
  np.testing.assert_allclose(
      velocity(x, jnp.float32(0.3)), v_null + 3 * (v_y - v_null), rtol=1e-6
  )


def test_the_interval_includes_its_ends():
  x, y = jnp.ones((2, 3)), jnp.array([0, 1])
  velocity = samplers.guided(
      labelled([]), y, scale=3.0, interval=(0.1, 0.7), null_label=9
  )
  on = lambda t: bool(jnp.any(velocity(x, jnp.float32(t)) < 0))
  assert [on(t) for t in (0.09, 0.1, 0.7, 0.71)] == [False, True, True, False]


@pytest.mark.parametrize(
    'guidance,message',
    [
        (dict(scale=0.5), 'scale is 0.5'),
        (dict(scale=float('nan')), 'scale is nan'),
        (dict(scale=float('inf')), 'scale is inf'),
        (dict(scale=2.0, interval=(float('nan'), 1.0)), 'low <= high'),
        (dict(scale=2.0, interval=(0.8, 0.1)), 'low <= high'),
        (dict(scale=2.0, interval=(0.0, 1.5)), 'low <= high'),
    ],
)
def test_wrong_guidance_is_refused(guidance, message):
  with pytest.raises(errors.UsageError, match=message):
    samplers.guided(labelled([]), jnp.array([0]), null_label=9, **guidance)


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_no_steps_are_refused(name):
  with pytest.raises(errors.UsageError, match='steps is 0'):
    samplers.SAMPLERS[name](
        lambda x, t: x, jnp.ones((1, 1)), steps=0, key=jax.random.key(0)
    )


def test_wrong_number_of_noises():
  with pytest.raises(ValueError, match='2 noises'):
    samplers.euler_maruyama(
        lambda x, t: x, jnp.ones((1, 1)), steps=5, noises=jnp.ones((2, 1, 1))
    )
