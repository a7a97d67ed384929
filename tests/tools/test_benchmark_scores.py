"""The benchmark of the scores, at a small size."""

import numpy as np
import pytest

from irepa_jax.evals import scores
from irepa_jax.tools.benchmarks import scores as benchmark

SIZE = dict(count=300, width=12)


@pytest.mark.parametrize('part', sorted(benchmark.PARTS))
def test_every_part_says_what_it_took(part):
  size = SIZE | ({'count': 1000} if part in ('kid', 'all', 'all_adm') else {})
  found = benchmark.measure(part, **size)
  assert found['part'] == part and found['count'] == size['count']
  assert found['seconds'] > 0 and 0.05 < found['peak_gb'] < 100
  assert all(np.isfinite(v) for v in found.values() if isinstance(v, float))


def test_the_distance_is_that_of_its_features():
  real, fake = (np.float64(benchmark.rows(300, 12, i)) for i in (0, 1))
  fit = lambda x: (x.mean(0), np.cov(x, rowvar=False))
  expected = scores.fid(*fit(real), *fit(fake))
  found = benchmark.measure('fid', **SIZE)['value']
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_real_images_are_at_most_those_of_the_adm_suite(monkeypatch):
  seen = []
  monkeypatch.setattr(
      scores,
      'precision_recall',
      lambda real, fake: seen.append((len(real), len(fake))) or (0.0, 0.0),
  )
  monkeypatch.setattr(benchmark, 'REFERENCE', 100)
  benchmark.measure('precision_recall_adm', **SIZE)
  benchmark.measure('precision_recall', **SIZE)
  assert seen == [(100, 300), (300, 300)]
