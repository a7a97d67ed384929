"""Batch normalisation: against the official SiT's, and in groups."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.models import batch_norm

GOLDEN = golden_files.load('repae_sit')
EPS = 1e-4


def nhwc(x):
  return jnp.asarray(np.moveaxis(x, 1, -1))


def running():
  scale, bias = (
      jnp.asarray(GOLDEN[f'init_latents_{name}']) for name in ('scale', 'bias')
  )
  count = jnp.zeros((), jnp.int32)
  return {'mean': bias, 'var': 1 / jnp.square(scale), 'count': count}


def test_running_statistics_equal_the_official_ones():
  _, after = batch_norm.train(nhwc(GOLDEN['z']), running(), eps=EPS)
  for name in ('mean', 'var'):
    stored = GOLDEN[f'train/bn_running_{name}_after']
    np.testing.assert_allclose(after[name], stored, rtol=1e-5)
  assert int(after['count']) == int(GOLDEN['train/bn_num_batches'])


def test_a_batch_has_mean_zero_and_variance_one():
  x = nhwc(GOLDEN['z']) * 3 + 100
  out, _ = batch_norm.train(x, running(), eps=0.0)
  np.testing.assert_allclose(np.mean(out, (0, 1, 2)), 0, atol=2e-5)
  np.testing.assert_allclose(np.var(out, (0, 1, 2)), 1, rtol=1e-4)


def test_evaluation_uses_the_running_statistics_alone():
  x, at = nhwc(GOLDEN['z']), running()
  expected = (x - at['mean']) / np.sqrt(at['var'] + EPS)
  out = batch_norm.evaluate(x, at, eps=EPS)
  np.testing.assert_allclose(out, expected, rtol=1e-6)
  alone = batch_norm.evaluate(x[:1], at, eps=EPS)
  np.testing.assert_array_equal(out[:1], alone)


@pytest.mark.parametrize('groups', [2, 4])
def test_a_group_of_rows_is_a_batch_of_its_own(groups):
  x = jax.random.normal(jax.random.key(0), (8, 3, 3, 4))
  out, after = batch_norm.train(x, running(), groups=groups)
  size = len(x) // groups
  first, kept = batch_norm.train(x[:size], running())
  np.testing.assert_allclose(out[:size], first, rtol=1e-6, atol=1e-6)
  last, _ = batch_norm.train(x[-size:], running())
  np.testing.assert_allclose(out[-size:], last, rtol=1e-6, atol=1e-6)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, kept
  )
