"""Scores against the ADM suite and torch-fidelity, and on odd input."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_features

from irepa_jax import errors
from irepa_jax.evals import scores


@pytest.fixture(scope='module')
def adm():
  return golden_files.load('adm_eval')


@pytest.fixture(scope='module')
def fidelity():
  return golden_files.load('torch_fidelity')


def fit(x):
  """Mean and covariance of rows, in float64."""
  x = np.asarray(x, np.float64)
  return x.mean(0), np.cov(x, rowvar=False)


def close(value, expected, rtol):
  np.testing.assert_allclose(value, expected, rtol=rtol)


def test_fid_equals_adm(adm):
  keys = ['mu_ref', 'sigma_ref', 'mu_sample', 'sigma_sample']
  value = scores.fid(*(adm[f'fid/{key}'] for key in keys))
  close(value, adm['fid/value'], rtol=1e-6)


def test_fid_of_small_statistics_equals_adm(adm):
  keys = ['mu1', 'sigma1', 'mu2', 'sigma2']
  mu1, sigma1, mu2, sigma2 = (adm[f'fid_small/{key}'] for key in keys)
  value = scores.fid(mu1, sigma1, mu2, sigma2)
  close(value, adm['fid_small/value'], rtol=1e-6)
  value = scores.fid(mu1, np.zeros_like(sigma1), mu2, sigma2)
  close(value, adm['fid_singular/value'], rtol=1e-6)


def test_fid_of_fewer_images_than_features_equals_adm(adm):
  n_real, n_fake = adm['fid_rankdef/n']
  real, fake = adm['ref_feats'][:n_real], adm['sample_feats'][:n_fake]
  close(scores.fid(*fit(real), *fit(fake)), adm['fid_rankdef/value'], 1e-6)


def low_rank_fid(x, y):
  """The distance from the rows themselves: exact for few of them."""
  centred = lambda a: (a - a.mean(0)) / np.sqrt(len(a) - 1)
  a, b = centred(x), centred(y)
  cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
  mean = np.square(x.mean(0) - y.mean(0)).sum()
  return mean + np.square(a).sum() + np.square(b).sum() - 2 * cross


@pytest.mark.parametrize('n', [2, 3, 40, 150])
def test_fid_is_exact_without_full_rank(n):
  rng = np.random.default_rng(n)
  x, y = rng.standard_normal((2, n, 200)) * np.geomspace(1e-4, 30, 200)
  value = scores.fid(*fit(x), *fit(y))
  close(value, low_rank_fid(x, y), rtol=1e-9)


@pytest.mark.parametrize('n', [2, 30, 300])
def test_fid_of_a_set_against_itself_is_zero(adm, n):
  moments = fit(adm['ref_feats'][:n])
  assert abs(scores.fid(*moments, *moments)) < 1e-10


def test_a_set_summed_in_float32_is_at_zero_from_itself():
  """Few images, wide features: a covariance with negative eigenvalues."""
  x = 40 * np.maximum(np.random.RandomState(0).standard_normal((30, 300)), 0)
  moments = scores.add(scores.no_moments(300), x.astype(np.float32))
  sigma = scores.statistics(moments)
  assert np.linalg.eigvalsh(sigma[1])[0] < -1e-6
  assert abs(scores.fid(*sigma, *sigma)) < 1e-9 * np.trace(sigma[1])


def test_fid_of_shifted_gaussians_is_the_squared_shift():
  sigma = np.diag([1.0, 2.0, 0.0])
  shift = np.array([3.0, 0.0, 4.0])
  close(scores.fid(np.zeros(3), sigma, shift, sigma), 25, rtol=1e-12)


def test_fid_equals_torch_fidelity(fidelity):
  real, fake, _ = random_features.features()
  close(scores.fid(*fit(real), *fit(fake)), fidelity['fid'], rtol=1e-6)


def batches(x, size):
  return [x[i : i + size] for i in range(0, len(x), size)]


@pytest.mark.parametrize('size', [1, 64, 300])
def test_moments_of_batches_equal_those_of_the_whole(adm, size):
  rows = adm['ref_feats'][:200] if size == 1 else adm['ref_feats']
  moments = scores.no_moments(rows.shape[1])
  for batch in batches(rows, size):
    moments = scores.add(moments, jnp.asarray(batch))
  mean, covariance = scores.statistics(moments)
  expected_mean, expected_covariance = fit(rows)
  np.testing.assert_allclose(mean, expected_mean, atol=1e-7)
  np.testing.assert_allclose(covariance, expected_covariance, atol=2e-7)


def test_moments_survive_a_mean_far_from_zero():
  rows = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)
  rows += np.float32(1000)
  moments = scores.no_moments(8)
  for batch in batches(rows, 100):
    moments = scores.add(moments, batch)
  mean, covariance = scores.statistics(moments)
  expected_mean, expected_covariance = fit(rows)
  np.testing.assert_allclose(mean, expected_mean, rtol=1e-7)
  # A float32 sum of squares would be off by about 0.1 here.
  np.testing.assert_allclose(covariance, expected_covariance, atol=1e-5)


def test_padding_is_left_out_of_the_moments(adm):
  rows = adm['ref_feats'][:20]
  padded = np.concatenate([rows, np.full((4, 48), np.nan, np.float32)])
  none = scores.no_moments(48)
  moments = scores.add(none, padded, np.arange(24) < 20)
  jax.tree.map(np.testing.assert_array_equal, moments, scores.add(none, rows))


def test_an_empty_batch_adds_nothing(adm):
  moments = scores.add(scores.no_moments(48), adm['ref_feats'])
  padding = np.zeros((4, 48), np.float32)
  same = scores.add(moments, padding, np.zeros(4, bool))
  jax.tree.map(np.testing.assert_array_equal, same, moments)


def test_merged_moments_do_not_depend_on_the_order(adm):
  rows = adm['ref_feats']
  none = scores.no_moments(48)
  a, b = scores.add(none, rows[:110]), scores.add(none, rows[110:])
  ab, ba = scores.merge(a, b), scores.merge(b, a)
  np.testing.assert_allclose(ab.mean, ba.mean, atol=1e-15)
  np.testing.assert_allclose(ab.scatter, ba.scatter, atol=1e-12)
  assert ab.count == len(rows)


def test_inception_score_equals_adm(adm):
  logits = adm['is/logits']
  close(scores.inception_score(logits), adm['is/all_one_split'], 1e-6)
  value = scores.inception_score(logits, split_size=100)
  close(value, adm['is/split100'], 1e-6)


def test_inception_score_equals_torch_fidelity(fidelity):
  _, _, logits = random_features.features()
  value = scores.inception_score(logits, 10, shuffle_seed=2020)
  close(value, fidelity['isc_10_shuffled'], 1e-9)
  close(scores.inception_score(logits, 2), fidelity['isc_2_in_order'], 1e-9)


def test_inception_score_bounds():
  certain = np.eye(10, dtype=np.float32) * 1e4
  close(scores.inception_score(certain), 10, 1e-12)
  close(scores.inception_score(np.zeros((7, 10), np.float32)), 1, 1e-12)
  close(scores.inception_score(certain[:1]), 1, 1e-12)


@pytest.mark.parametrize('k, column', [(3, 0), (5, 1)])
def test_precision_recall_equals_adm(adm, k, column):
  real, fake = adm['ref_feats'], adm['sample_feats']
  found = scores.precision_recall(real, fake, k, half=True)
  names = ('precision', 'recall')
  expected = [adm[f'pr/k3_k5_{name}'][column] for name in names]
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_precision_recall_is_exact(adm):
  found = scores.precision_recall(adm['ref_feats'], adm['sample_feats'])
  np.testing.assert_allclose(found, adm['pr/precision_recall_f64'], atol=1e-12)


def test_half_precision_variant_equals_adm(adm):
  real, fake = adm['ref_feats'], adm['sample_feats']
  found = scores.precision_recall(real, fake, half=True)
  np.testing.assert_allclose(found, adm['pr/precision_recall_fp16'], atol=1e-12)
  for x, name in ((real, 'ref'), (fake, 'sample')):
    radii = scores._radii(jnp.asarray(x), 3, scores._half_distances)
    np.testing.assert_array_equal(radii, adm[f'pr/radii_{name}_fp16'])


@pytest.mark.parametrize('scale', [1e-8, 3e-6, 6.1e-5, 1e-3, 1.0, 300.0, 65519.0, 7e4])
def test_half_rounds_as_numpy_does(scale):
  x = np.random.default_rng(0).normal(size=1000).astype(np.float32) * np.float32(scale)
  with np.errstate(over='ignore'):
    expected = x.astype(np.float16).astype(np.float32)
  np.testing.assert_array_equal(jax.jit(scores._half)(x), expected)


@pytest.mark.parametrize('width', [8, 20, 2048])
def test_squares_of_any_width_are_summed_in_eight_lanes(width):
  x = np.random.default_rng(width).gamma(0.4, 1, (6, width)).astype(np.float16)
  lanes = np.zeros((6, 8), np.float16)
  for i in range(0, width, 8):
    part = x[:, i : i + 8]
    lanes[:, : part.shape[1]] += part * part
  expected = lanes.astype(np.float32).sum(1).astype(np.float16)
  found = jax.jit(scores._half_squares)(x.astype(np.float32))
  np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_half_precision_variant_falls_back_where_it_overflows(adm):
  scale = adm['pr/scale_big']
  real, fake = adm['ref_feats'] * scale, adm['sample_feats'] * scale
  found = scores.precision_recall(real, fake, half=True)
  expected = adm['pr/precision_recall_fp32branch']
  np.testing.assert_allclose(found, expected, atol=1e-12)
  radii = scores._radii(jnp.asarray(real), 3, scores._half_distances)
  np.testing.assert_allclose(radii, adm['pr/radii_ref_fp32branch'], rtol=2e-6)


def test_radii_equal_adm(adm):
  radii = scores._radii(jnp.asarray(adm['ref_feats']), 3, scores._distances)
  np.testing.assert_allclose(radii, adm['pr/radii_ref_f64'], rtol=2e-6)


def test_precision_recall_does_not_depend_on_blocks(adm, monkeypatch):
  monkeypatch.setattr(scores, 'BLOCK', 77)
  found = scores.precision_recall(adm['ref_feats'], adm['sample_feats'])
  np.testing.assert_allclose(found, adm['pr/precision_recall_f64'], atol=1e-12)


def test_precision_recall_equals_torch_fidelity(fidelity):
  real, fake, _ = random_features.features()
  precision, recall = scores.precision_recall(real, fake)
  np.testing.assert_allclose(precision, fidelity['precision'], atol=1e-6)
  np.testing.assert_allclose(recall, fidelity['recall'], atol=1e-6)


def test_precision_recall_of_a_set_against_itself_is_one(adm):
  rows = adm['ref_feats']
  assert scores.precision_recall(rows, rows) == (1.0, 1.0)


def test_precision_and_recall_tell_quality_from_variety():
  rng = np.random.default_rng(0)
  real = rng.standard_normal((400, 2)).astype(np.float32)
  narrow = 0.05 * rng.standard_normal((400, 2)).astype(np.float32)
  precision, recall = scores.precision_recall(real, narrow)
  assert precision == 1 and recall < 0.1


def test_kid_equals_adm(adm):
  real, fake = adm['ref_feats'], adm['sample_feats']
  value = scores.polynomial_mmd(real, fake)
  close(value, adm['kid/full_unbiased'], 1e-9)
  indices = zip(adm['kid/idx_ref'], adm['kid/idx_sample'], strict=True)
  values = [scores.polynomial_mmd(real[i], fake[j]) for i, j in indices]
  close(values, adm['kid/subset_values'], 1e-9)


def test_kid_equals_torch_fidelity(fidelity):
  real, fake, _ = random_features.features()
  mean, deviation = scores.kid(real, fake, subsets=20, subset_size=300)
  close(mean, fidelity['kid_mean'], 1e-4)
  close(deviation, fidelity['kid_std'], 1e-3)


def test_cmmd_follows_its_definition():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((30, 6)), rng.standard_normal((20, 6)) + 0.5
  unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  square = lambda a, b: np.square(unit(a)[:, None] - unit(b)).sum(-1)
  kernel = lambda a, b: np.exp(-square(a, b) / (2 * 10**2)).mean()
  expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
  close(scores.cmmd(x, y), expected, 1e-9)
  assert abs(scores.cmmd(x, x)) < 1e-9


ROWS = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
NAN = np.where(np.arange(8)[:, None] % 5 == 2, np.float32(np.nan), ROWS)
ONE = ROWS[:1]
WIDE = np.zeros((8, 5), np.float32)


@pytest.mark.parametrize(
    'call, line',
    [
        (lambda: scores.precision_recall(ROWS, NAN), '2 of 8 rows of fake'),
        (lambda: scores.precision_recall(NAN, ROWS), 'the first is row 2'),
        (lambda: scores.precision_recall(ROWS, ONE), 'k=3 needs 4 fake images'),
        (lambda: scores.precision_recall(ROWS, WIDE), 'width 4 and of 5'),
        (lambda: scores.kid(ROWS, NAN), 'not finite'),
        (lambda: scores.cmmd(NAN, ROWS), 'not finite'),
        (lambda: scores.inception_score(NAN), '2 of 8 rows of logits'),
        (lambda: scores.inception_score(ROWS[:0]), r'\(0, 4\)'),
        (lambda: scores.add(scores.no_moments(4), NAN), '2 of 8 rows'),
        (lambda: scores.statistics(moments(ONE)), 'at least 2 images, got 1'),
        (lambda: scores.fid(*fit(ROWS), *fit(WIDE)), '4 and of 5 features'),
        (lambda: scores.fid(*fit(ROWS), *fit(NAN)), 'not finite'),
    ],
)
def test_bad_features_get_one_line(call, line):
  with pytest.raises(errors.DataError, match=line) as error:
    call()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'call, line',
    [
        (lambda: scores.kid(ROWS, ROWS), 'subsets of 1000 .* 8 real and 8'),
        (lambda: scores.inception_score(ROWS, 9), '9 splits .* 8'),
    ],
)
def test_settings_that_ask_for_more_images(call, line):
  with pytest.raises(errors.UsageError, match=line):
    call()


def moments(rows):
  return scores.add(scores.no_moments(rows.shape[1]), rows)
