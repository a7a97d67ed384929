"""Summaries of image sets, their files, and references of every kind."""

import json

import data_sets
import numpy as np
import pytest
import small_space

from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.evals import image_sets
from irepa_jax.evals import references
from irepa_jax.evals import statistics

COUNT = 37
SPACES = (small_space.space(),)


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh()


@pytest.fixture
def npz(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, small_space.images(COUNT))
  return path


def features(pixels):
  found = SPACES[0].extract(pixels)
  return {f'inception/{k}': np.asarray(x) for k, x in found.items()}


def summarise(path, mesh, **changes):
  settings = dict(batch_size=16) | changes
  opened = references.open_(path)
  return references.summarise(opened, SPACES, mesh, **settings)


def same_fit(found, expected, rtol=1e-6):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize('batch_size', [8, 16, 64])
def test_a_stream_over_the_mesh_equals_the_whole(npz, mesh, batch_size):
  images = image_sets.open_(npz)
  found = statistics.from_images(SPACES, images, mesh, batch_size=batch_size)
  whole = features(small_space.images(COUNT))
  assert found.count == COUNT and set(found.rows) == {
      'inception/pool', 'inception/logits',
  }  # fmt: skip
  for name, rows in found.rows.items():
    np.testing.assert_allclose(rows, whole[name], atol=1e-5)
  assert set(found.fits) == {'inception/pool', 'inception/spatial'}
  for name, fit in found.fits.items():
    x = whole[name].astype(float)
    same_fit(fit, (x.mean(0), np.cov(x, rowvar=False)), 1e-4)


def test_more_rows_than_a_block(mesh):
  del mesh
  x = np.random.RandomState(0).standard_normal((2500, 3)).astype('f') + 5
  blocks = [{'inception/pool': b} for b in np.array_split(x, 7)]
  found = statistics.summarise(blocks, len(x), kept=10)
  expected = x.astype(float).mean(0), np.cov(x.astype(float), rowvar=False)
  same_fit(found.fits['inception/pool'], expected, 1e-5)
  np.testing.assert_array_equal(found.rows['inception/pool'], x[::250])


@pytest.mark.parametrize('count, kept', [(10, 3), (10, 10), (3, 99), (5, 0)])
def test_kept_rows_are_spread_evenly(count, kept):
  chosen = np.flatnonzero(statistics.spread(count, kept))
  assert len(chosen) == min(count, kept)
  assert len(np.unique(np.diff(chosen))) <= 2 and (kept == 0 or chosen[0] == 0)


def test_written_statistics_are_read_exactly(npz, mesh, tmp_path):
  summary = summarise(npz, mesh)
  statistics.write(tmp_path / 's.npz', summary, {'resolution': (8, 8)})
  again, meta = statistics.read(tmp_path / 's.npz')
  assert meta == {'resolution': [8, 8], 'count': COUNT}
  assert again.count == COUNT
  for name, fit in summary.fits.items():
    for a, b in zip(fit, again.fits[name], strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(
      again.rows['inception/pool'], summary.rows['inception/pool']
  )
  with np.load(tmp_path / 's.npz') as arrays:  # under the names of ADM
    assert {'mu', 'sigma', 'mu_s', 'sigma_s'} <= set(arrays.files)


def virtual(path, pixels, mu_of):
  """Writes an npz as ADM's: images, and statistics of more images."""
  whole = features(mu_of)
  fit = lambda k: (whole[k].mean(0), np.cov(whole[k], rowvar=False))
  arrays = {}
  for name, keys in statistics.ADM.items():
    arrays |= dict(zip(keys, fit(name), strict=True))
  np.savez(path, arr_0=pixels, **arrays)
  return fit('inception/pool')


def test_stored_statistics_go_before_those_of_the_images(tmp_path, mesh):
  many = small_space.images(80, seed=1)
  mu, sigma = virtual(tmp_path / 'v.npz', many[:20], many)
  found = summarise(tmp_path / 'v.npz', mesh)
  same_fit(found.fits['inception/pool'], (mu, sigma))
  rows = features(many[:20])['inception/pool']
  np.testing.assert_allclose(found.rows['inception/pool'], rows, atol=1e-5)
  told = references.described(references.open_(tmp_path / 'v.npz'), found)
  assert told['count'] is None and told['rows'] == 20


def test_rows_that_nobody_wants_are_not_made(tmp_path, mesh):
  many = small_space.images(30, seed=1)
  virtual(tmp_path / 'v.npz', many, many)
  stored = SPACES[0]._replace(extract=lambda images: pytest.fail('extracts'))
  opened = references.open_(tmp_path / 'v.npz')
  assert not references.summarise(opened, (stored,), mesh, kept=0).rows


def test_a_data_set_is_a_reference(tmp_path, mesh):
  data_sets.write(tmp_path / 'd', count=30)
  found = summarise(tmp_path / 'd', mesh, kept=5)
  whole = features(np.stack([data_sets.pixels(i) for i in range(30)]))
  same_fit(
      [found.fits['inception/pool'][0]], [whole['inception/pool'].mean(0)], 1e-5
  )
  assert len(found.rows['inception/pool']) == 5


def test_features_that_are_not_finite_are_told(npz, mesh):
  broken = SPACES[0]._replace(
      extract=lambda x: {
          k: v * float('nan') for k, v in SPACES[0].extract(x).items()
      }
  )
  images = image_sets.open_(npz)
  with pytest.raises(errors.DataError, match='37 of 37 rows .* not finite'):
    statistics.from_images([broken], images, mesh, batch_size=16)


def refused(path, said, **check):
  with pytest.raises(errors.DataError, match=said) as raised:
    opened = references.open_(path)
    references.check_side(opened, check.get('side', (8, 8)))
    references.check_spaces(opened, check.get('spaces', SPACES))
  assert '\n' not in str(raised.value)


def test_references_that_do_not_fit_are_told(npz, mesh, tmp_path):
  refused(npz, 'samples are 9x9 pixels.*8x8', side=(9, 9))
  summary = summarise(npz, mesh, kept=0)
  path = tmp_path / 's.npz'
  meta = {'resolution': (8, 8), 'spaces': {'inception': '6' * 64}}
  statistics.write(path, summary, meta)
  refused(path, 'inception with weights of sha256 6666.*here have 5555')
  refused(path, 'pixels', side=(16, 16))
  other = (small_space.space('dinov2-vit-b', features=('pool',)),)
  refused(path, 'not of dinov2-vit-b, and no images', spaces=other)


BAD = [
    (dict(mu=np.zeros(3)), 'arr_0'),
    (dict(mu=np.zeros(3), sigma=np.zeros((2, 2))), r'\[3\] and \[2, 2\]'),
    (dict(mu=np.full(3, np.nan), sigma=np.zeros((3, 3))), 'expected finite'),
    (dict(something=np.zeros(3)), 'or statistics mu and sigma'),
]


@pytest.mark.parametrize('arrays, said', BAD)
def test_an_npz_that_is_no_reference_is_told(tmp_path, arrays, said):
  np.savez(tmp_path / 'r.npz', **arrays)
  refused(tmp_path / 'r.npz', said)


def test_a_damaged_file_of_statistics_is_told(npz, mesh, tmp_path):
  path = tmp_path / 's.npz'
  statistics.write(path, summarise(npz, mesh), {})
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  path.write_bytes(data)
  refused(path, 'damaged')


def test_the_meta_is_plain_json(npz, mesh, tmp_path):
  statistics.write(tmp_path / 's.npz', summarise(npz, mesh), {'a': 1})
  with np.load(tmp_path / 's.npz') as arrays:  # no pickle
    assert json.loads(str(arrays[statistics.META]))['a'] == 1


@pytest.mark.parametrize(
    'widths',
    [{'inception/pool': 64}, {'inception/spatial': 1}, {'x/pool': 8}],
)
def test_features_of_another_width_are_refused_before_the_work(tmp_path, widths):
  d = {'inception/pool': 2048, 'inception/spatial': 2023, 'x/pool': 7}
  fits = {n: (np.zeros(k), np.eye(k)) for n, k in d.items()}
  statistics.write(tmp_path / 'r.npz', statistics.Summary(9, fits, {}), {})
  opened = references.open_(tmp_path / 'r.npz')
  references.check_widths(opened, d | {'y/pool': 3})
  with pytest.raises(errors.DataError, match='features of .* of another network'):
    references.check_widths(opened, widths)
