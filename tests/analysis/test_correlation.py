"""Correlations against scipy, the results table and the published points."""

import numpy as np
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.analysis import correlation

stats = pytest.importorskip('scipy.stats')


def pairs(n=20, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 12, n).astype(float)  # with ties
  return x, -x + 3 * rng.standard_normal(n)


def test_equals_scipy():
  x, y = pairs()
  found = correlation.correlate(x, y)
  assert found.n == 20
  np.testing.assert_allclose(found.pearson, stats.pearsonr(x, y)[0])
  np.testing.assert_allclose(found.spearman, stats.spearmanr(x, y)[0])


def test_intervals_equal_scipy_bootstrap():
  x, y = pairs()
  found = correlation.correlate(x, y)
  for name in ('pearson', 'spearman'):
    measure = getattr(correlation, name)
    want = stats.bootstrap(
        (x, y), lambda x, y, axis, f=measure: f(x, y), paired=True, vectorized=True,
        method='percentile', n_resamples=10_000, rng=1,
    ).confidence_interval  # fmt: skip
    got = getattr(found, f'{name}_interval')
    # Two draws of 10,000 resamples: their percentiles differ by about 0.005.
    np.testing.assert_allclose(got, want, atol=0.03)


def test_exact_line_and_too_few_points():
  x = np.arange(5.0)
  found = correlation.correlate(x, 2 * x + 1)
  np.testing.assert_allclose(found.pearson_interval, (1, 1))
  assert correlation.correlate(x[:2], x[:2]) is None
  assert correlation.correlate(x, np.ones(5)) is None


def write(path, text):
  path.write_text(text)
  return path


TABLE = 'encoder,model,fid,lds\na,B,10,0.5\nb,B,20,\nc,L,30,0.1\n'


def test_reads_rows_and_skips_empty_cells(tmp_path):
  path = write(tmp_path / 'results.csv', TABLE)
  assert len(correlation.read(path)) == 3
  rows = correlation.read(path, [('model', 'B')])
  names, x, y = correlation.points(rows, 'lds', 'fid')
  assert (names, x.tolist(), y.tolist()) == (['a'], [0.5], [10.0])


def test_metrics_are_joined_by_encoder_and_never_overwrite(tmp_path):
  rows = correlation.read(write(tmp_path / 'results.csv', TABLE))
  metrics = [{'encoder': 'a', 'lds': '9', 'cds': '1'}, {'encoder': 'b', 'lds': '2'}]
  joined = correlation.join(rows, metrics)
  assert [r.get('lds') for r in joined] == ['0.5', '2', '0.1']
  assert joined[0]['cds'] == '1'


def test_weights_do_not_change_the_name_but_random_ones_do():
  rows = [{'encoder': 'a', 'fid': '1'}, {'encoder': 'b', 'fid': '2'}]
  metrics = [
      {'encoder': 'a@a.pth', 'lds': '3'}, {'encoder': 'b@random', 'lds': '4'}
  ]  # fmt: skip
  joined = correlation.join(rows, metrics)
  assert [r.get('lds') for r in joined] == ['3', None]
  assert [r['encoder'] for r in joined] == ['a', 'b']
  with pytest.raises(errors.UsageError, match='no encoder is in both'):
    correlation.join(rows, [{'encoder': 'c', 'lds': '1'}])


def test_bad_tables_are_refused(tmp_path):
  with pytest.raises(errors.DataError, match='cannot be read'):
    correlation.read(tmp_path / 'none.csv')
  with pytest.raises(errors.DataError, match='no column encoder'):
    correlation.read(write(tmp_path / 'a.csv', 'name,fid\nx,1\n'))
  path = write(tmp_path / 'b.csv', TABLE)
  with pytest.raises(errors.UsageError, match="no column 'size'"):
    correlation.read(path, [('size', '1')])
  with pytest.raises(errors.UsageError, match=r"no row .*'B', 'L'"):
    correlation.read(path, [('model', 'XL')])
  with pytest.raises(errors.DataError, match='must hold numbers'):
    correlation.points(correlation.read(path), 'model', 'fid')
  twice = [{'encoder': 'a'}, {'encoder': 'a'}]
  with pytest.raises(errors.UsageError, match='several rows of a'):
    correlation.join(correlation.read(path), twice)


def test_published_points_are_those_of_the_paper():
  rows = correlation.read('published')
  numbers = {(r['encoder'], r['model'], r['iterations'], r['method'],
              r['guidance'], r['source'][-7:]): r['fid'] for r in rows}  # fmt: skip
  key = ('dinov2-vit-b', 'SiT-XL/2', '100000', 'irepa', '1.0', 'Table 2')
  assert numbers[key] == '16.96'
  assert all(float(r['fid']) > 0 and r['source'] for r in rows)


def test_published_rows_name_encoders_of_the_zoo():
  """Each primary row is one experiment, under a name that a survey gives."""
  rows = correlation.read('published', [('primary', 'yes')])
  fields = ('encoder', 'model', 'iterations', 'method', 'guidance', 'sampling')
  assert len({tuple(r[f] for f in fields) for r in rows}) == len(rows)
  known = set(encoders.names())
  families = {name.split('-')[0] for name in known}
  for row in rows:
    name = row['encoder']
    if name.split('-')[0] in families:
      assert name in known, name


def test_published_points_show_the_finding_of_the_paper():
  where = [
      ('model', 'SiT-XL/2'), ('iterations', '100000'), ('method', 'repa'),
      ('guidance', '1.0'), ('primary', 'yes'),
  ]  # fmt: skip
  rows = correlation.read('published', where)
  lds = correlation.panel(rows, 'lds', 'fid')
  probe = correlation.panel(rows, 'linear_probe', 'fid')
  assert lds.found.pearson < -0.9 and lds.found.n == 4
  assert abs(probe.found.pearson) < 0.4 and probe.found.n == 5
