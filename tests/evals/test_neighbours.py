"""Screened neighbours are those of the exact formula."""

import golden_files
import numpy as np
import pytest

from irepa_jax.evals import neighbours
from irepa_jax.evals import scores

BLOCK = 64


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  monkeypatch.setattr(neighbours, 'BLOCK', BLOCK)
  monkeypatch.setattr(neighbours, 'GROUPS', 8)
  monkeypatch.setattr(neighbours, 'OPEN', 1)  # so small blocks are rarely sparse


def features(count, width=40, seed=0):
  """Like those of a ReLU network: a mean far from zero, uneven channels."""
  rng = np.random.default_rng(seed)
  x = np.maximum(rng.standard_normal((count, width)), 0)
  return np.float32(x * rng.gamma(1.0, 1.0, width) + 5)


def clustered(count, width=40):
  """Rows in 6 clusters, tighter than the screen can tell, and copies."""
  rng = np.random.default_rng(1)
  centres = 10 * rng.standard_normal((6, width))
  x = centres[np.arange(count) % 6] + 1e-3 * rng.standard_normal((count, width))
  x[: count // 3] = x[0]
  return np.float32(x)


def heavy(count, width=40):
  rng = np.random.default_rng(2)
  return np.float32(rng.standard_t(1.5, (count, width)) * 10)


def exact(x, y):
  return np.square(np.float64(x)[:, None] - np.float64(y)).sum(-1)


def exact_radii(x, k):
  return np.sort(exact(x, x), axis=1)[:, k]


def clouds(*sets):
  centre = sets[0].mean(0)
  return [neighbours.cloud(x, centre) for x in sets]


@pytest.mark.parametrize('make', [features, heavy])
@pytest.mark.parametrize('count, k', [(300, 3), (129, 1), (5, 4), (300, 50)])
def test_radii_are_exact(make, count, k):
  x = make(count)
  found = neighbours.radii(*clouds(x), k)
  np.testing.assert_allclose(found, exact_radii(x, k), rtol=1e-12)


def test_radii_equal_adm():
  adm = golden_files.load('adm_eval')
  found = neighbours.radii(*clouds(adm['ref_feats']), 3)
  np.testing.assert_allclose(found, adm['pr/radii_ref_f64'], rtol=1e-12)


def test_every_distance_is_enclosed():
  for x in (features(BLOCK), heavy(BLOCK), clustered(BLOCK)):
    a, b = clouds(x, x[::-1])
    a, b = a.blocks[0], b.blocks[0]
    low, high = neighbours._enclosed(a.columns.T, a, b)
    apart = exact(x, x[::-1])
    assert (low <= apart).all() and (high >= apart).all()


def test_few_pairs_are_left_open(monkeypatch):
  """The screen decides: what it costs is what is left to float64."""
  seen = []
  measure = neighbours.pair_distances
  count = lambda x, y, pairs: seen.append(len(pairs)) or measure(x, y, pairs)
  monkeypatch.setattr(neighbours, 'pair_distances', count)
  x, y = clouds(features(1000, 512), features(900, 512, seed=1))
  r_x, r_y = (neighbours.radii(a, 3) for a in (x, y))
  neighbours.covered(x, y, r_x, r_y)
  assert seen[0] < 10 * 1000 and seen[1] < 10 * 900 and seen[2] < 10 * 1000


@pytest.mark.parametrize('counts', [(300, 200), (64, 129), (4, 300)])
@pytest.mark.parametrize('seed', range(3))
def test_coverage_is_exact(counts, seed):
  x = features(counts[0], seed=2 * seed)
  y = features(counts[1], seed=2 * seed + 1)
  a, b = clouds(x, y)
  r_x, r_y = neighbours.radii(a, 3), neighbours.radii(b, 3)
  in_x, in_y = neighbours.covered(a, b, r_x, r_y)
  apart = exact(x, y)
  np.testing.assert_array_equal(in_x, (apart <= r_x[:, None]).any(0))
  np.testing.assert_array_equal(in_y, (apart <= r_y).any(1))
  assert 0 < in_x.sum() + in_y.sum() < sum(counts)


def test_a_row_at_the_radius_is_in_the_ball():
  x = features(200)
  r = exact_radii(x, 3)
  third = np.argsort(exact(x, x), axis=1)[:, 3]
  a, b = clouds(x, x[third[:1]])
  in_x, _ = neighbours.covered(a, b, np.where(np.arange(200), -1, r), np.array([-1.0]))
  assert in_x.all()
  inside = np.where(np.arange(200), -1, np.nextafter(r, 0))
  in_x, _ = neighbours.covered(a, b, inside, np.array([-1.0]))
  assert not in_x.any()


def test_clusters_and_copies_are_taken_in_float32(monkeypatch):
  monkeypatch.setattr(neighbours, 'OPEN', 1 / 16)
  x = clustered(300)
  taken = []
  distances = neighbours.distances
  monkeypatch.setattr(
      neighbours, 'distances', lambda *a: taken.append(1) or distances(*a)
  )
  found = neighbours.radii(*clouds(x), 3)
  assert taken
  # Of 20-wide sums about 1e3 in float32, and rounding below zero is zero.
  np.testing.assert_allclose(found, exact_radii(x, 3), rtol=1e-5, atol=2e-3)
  assert scores.precision_recall(x, x) == (1.0, 1.0)


def test_float32_alone_agrees(monkeypatch):
  x, y = features(200), features(150, seed=1)
  expected = scores.precision_recall(x, y)
  monkeypatch.setattr(neighbours, 'OPEN', -1)
  assert scores.precision_recall(x, y) == expected
