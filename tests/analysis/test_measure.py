"""Streaming measurements, their tables and the ranking."""

import csv
import json
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import alignment
from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import measure
from irepa_jax.analysis import report
from irepa_jax.analysis import spatial

N, SIDE, WIDTH = 10, 6, 8
GRID = (SIDE, SIDE)
METRICS = ('lds', 'cds', 'srss', 'rmsc')


def smooth_tokens(seed=0, spread=1.5):
  rng = np.random.default_rng(seed)
  y, x = (axis.reshape(-1) for axis in np.mgrid[:SIDE, :SIDE])
  gap = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
  noise = rng.standard_normal((N, SIDE * SIDE, WIDTH))
  return np.float32(np.exp(-gap / (2 * spread**2)) @ noise)


def batches(size, masks=True):
  """Batches of N images, padded as inputs.batches pads them."""
  rng = np.random.default_rng(5)
  every = np.tile(np.arange(12) < 6, (N, 12, 1)) ^ (rng.random((N, 12, 12)) < 0.05)
  for start in range(0, N, size):
    index = np.arange(start, min(start + size, N))
    full = np.pad(index, (0, size - len(index)), mode='edge')
    yield inputs.Batch(
        full, len(index), np.zeros((size, 12, 12, 3), np.uint8),
        np.zeros(size, np.int32), every[full] if masks else None, None,
    )  # fmt: skip


def run(tokens, size=N, masks=True, name='x', **settings):
  encode = lambda batch: jnp.asarray(tokens[batch.index])
  representation = measure.Representation(name, GRID, encode)
  return measure.measure(representation, batches(size, masks), **settings)


def test_tokens_of_a_batch_are_dropped_before_the_next_but_one():
  tokens, alive = smooth_tokens(), []

  def encode(batch):
    found = jnp.asarray(tokens[batch.index])
    alive.append(weakref.ref(found))
    assert sum(ref() is not None for ref in alive) <= 2
    return found

  representation = measure.Representation('x', GRID, encode)
  measure.measure(representation, batches(2), keep=(0,))
  assert len(alive) == N // 2 and not any(ref() is not None for ref in alive)


@pytest.mark.parametrize('definition', list(spatial.DEFINITIONS))
@pytest.mark.parametrize('size', [1, 4])
def test_streaming_equals_one_batch(size, definition):
  tokens = smooth_tokens()
  whole = run(tokens, definition=definition)
  parts = run(tokens, size, definition=definition)
  # The same float32 sums, which XLA may order otherwise for another batch.
  for gamma in ('', '0.6'):
    for metric in METRICS:
      np.testing.assert_allclose(
          parts.values[gamma][metric], whole.values[gamma][metric], atol=2e-6
      )
    np.testing.assert_allclose(parts.profile[gamma], whole.profile[gamma], atol=2e-6)
  np.testing.assert_allclose(parts.pooled, tokens.mean(axis=1), atol=1e-6)


def test_values_are_the_metrics():
  tokens = smooth_tokens()
  found = run(tokens, 4, keep=(0, 1))
  np.testing.assert_allclose(found.values['']['lds'], spatial.lds(tokens, *GRID), atol=2e-6)
  normalised = alignment.spatial_norm(jnp.asarray(tokens), 0.6)
  np.testing.assert_allclose(
      found.values['0.6']['rmsc'], spatial.rmsc(normalised, *GRID), atol=2e-6
  )
  np.testing.assert_array_equal(found.kept, tokens[:2])
  np.testing.assert_array_equal(run(tokens, 4, keep=range(7)).kept, tokens[:7])
  some = (1, 4, 6)
  np.testing.assert_array_equal(run(tokens, 4, keep=some).kept, tokens[list(some)])
  assert run(tokens, 4).kept.shape == (0, SIDE * SIDE, WIDTH)


def planted(strength):
  """Smooth tokens on top of one direction that all share."""
  direction = np.random.default_rng(9).standard_normal(WIDTH)
  return smooth_tokens() + np.float32(strength * direction)


def test_normalisation_raises_contrast_of_a_planted_global_component():
  found = run(planted(10), gammas=('', '0', '0.6', '1'))
  mean = {g: {m: v.mean() for m, v in values.items()} for g, values in found.values.items()}
  for metric in METRICS:
    assert mean['0.6'][metric] > 1.5 * mean[''][metric]
    assert mean['1'][metric] > mean['0.6'][metric]


def test_gamma_one_removes_the_component_whatever_its_strength():
  strong = run(planted(10), gammas=('1',)).values['1']
  weak = run(planted(1), gammas=('1',)).values['1']
  for metric in METRICS:
    # Subtracting a mean of 10 rounds by 1e-6, over a spread of about 1.
    np.testing.assert_allclose(strong[metric], weak[metric], atol=1e-4)


def test_gamma_zero_only_rescales_channels():
  tokens = planted(10)
  found = run(tokens, gammas=('0',)).values['0']
  scaled = tokens / tokens.std(axis=1, ddof=1, keepdims=True)
  np.testing.assert_allclose(found['lds'], spatial.lds(scaled, *GRID), atol=2e-5)


def test_masks_with_little_of_one_kind_do_not_count():
  mask = np.zeros((3, 12, 12), bool)
  mask[1, :, :6], mask[2, 0, 0] = True, True
  tokens = measure.token_masks(mask, GRID)
  np.testing.assert_array_equal(tokens.any(axis=1), [False, True, False])


def test_without_masks_srss_is_absent():
  assert set(run(smooth_tokens(), masks=False).values['']) == {'lds', 'cds', 'rmsc'}


def test_mean_and_error_leave_undefined_images_out():
  mean, error, count = measure.mean_and_error(np.array([1.0, np.nan, 3.0]))
  assert (mean, error, count) == (2.0, 1.0, 2)
  assert np.isnan(measure.mean_and_error(np.array([np.nan]))[0])


def test_bad_tokens_and_masks_are_refused():
  bad = smooth_tokens()
  bad[7, 3] = np.nan
  with pytest.raises(errors.DataError, match='not finite for image 7'):
    run(bad, 4)
  with pytest.raises(errors.DataError, match='grid of 6 x 6'):
    run(smooth_tokens()[:, :30])
  empty = (b._replace(mask=np.zeros_like(b.mask)) for b in batches(4))
  encode = lambda batch: jnp.asarray(smooth_tokens()[batch.index])
  with pytest.raises(errors.DataError, match='none of 10 masks'):
    measure.measure(measure.Representation('x', GRID, encode), empty)


def shuffled(tokens):
  order = np.random.default_rng(3).permutation(tokens.shape[1])
  return tokens[:, order]


@pytest.fixture(scope='module')
def measured():
  tokens = smooth_tokens()
  return [
      run(shuffled(tokens), name='shuffled'),
      run(tokens, name='smooth'),
      run(tokens + 2, name='offset'),
  ]


def test_ranking_orders_by_structure(measured):
  ranked = report.ranking(measured)
  assert ranked[0]['encoder'] == 'smooth'
  # Shuffling tokens leaves RMSC alone, so there the two are level.
  assert ranked[0]['lds_rank'] == ranked[0]['cds_rank'] == 1
  assert all(row['low'] <= row['mean_rank'] <= row['high'] for row in ranked)
  assert [row['place'] for row in ranked] == [1, 2, 3]


def test_ranking_of_equals_is_undecided():
  tokens = smooth_tokens()
  ranked = report.ranking([run(tokens, name='a'), run(smooth_tokens(1), name='b')])
  assert ranked[0]['high'] > ranked[1]['low']


def test_tables_round_trip(measured, tmp_path):
  rows = report.rows(measured, 'code')
  assert [(r['encoder'], r['gamma']) for r in rows[:2]] == [('shuffled', ''), ('shuffled', '0.6')]
  report.write_csv(tmp_path / 'metrics.csv', rows)
  with open(tmp_path / 'metrics.csv') as file:
    read = list(csv.DictReader(file))
  assert float(read[2]['lds']) == rows[2]['lds'] and len(read) == 6
  report.write_json(tmp_path / 'a.json', {'x': float('nan'), 'y': [1.5]})
  assert json.loads((tmp_path / 'a.json').read_text()) == {'x': None, 'y': [1.5]}


def test_per_image_table_names_every_image(measured):
  names = [f'image {i}' for i in range(N)]
  table = report.per_image(measured[:1], names)
  assert len(table) == 2 * N and table[3]['image'] == 'image 3'
  assert table[3]['lds'] == measured[0].values['']['lds'][3]


def test_text_is_aligned_and_marks_what_is_undefined():
  text = report.text([{'a': 1.23456, 'b': float('nan')}, {'a': 2.0}], ('a', 'b', 'c'))
  assert text == 'a      b\n1.235  -\n2'
