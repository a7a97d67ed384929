"""Scores of summaries, what is left out and why, and the record."""

import json

import numpy as np
import pytest
import small_space

from irepa_jax.distributed import sharding
from irepa_jax.evals import judge as judges
from irepa_jax.evals import references
from irepa_jax.evals import scores
from irepa_jax.evals import statistics

SPACES = (small_space.space(),)
MAIN = {'fid', 'sfid', 'inception_score', 'precision', 'recall'}


def summary(count=40, seed=0, spaces=SPACES, **draw):
  pixels = small_space.images(count, seed, **draw)
  block = {
      f'{space.name}/{k}': np.asarray(x)
      for space in spaces
      for k, x in space.extract(pixels).items()
  }
  return statistics.summarise([block], count)


def test_a_set_against_itself_is_at_zero():
  values, left_out = judges.compare(summary(), summary())
  assert set(values) == MAIN and set(left_out) == {'kid'}
  assert abs(values['fid']) < 1e-6 and abs(values['sfid']) < 1e-6
  assert values['precision'] == values['recall'] == 1
  assert list(values)[0] == 'fid'  # in the order that papers have


def test_every_score_is_that_of_the_rows():
  fake, real = summary(50, 1, high=200), summary(60, 2)
  values, _ = judges.compare(fake, real, splits=2, half=True)
  rows = lambda s: s.rows['inception/pool']
  fit = lambda x: (x.mean(0, float), np.cov(x.astype(float), rowvar=False))
  distance = scores.fid(*fit(rows(real)), *fit(rows(fake)))
  np.testing.assert_allclose(values['fid'], distance, rtol=1e-4)
  expected = scores.precision_recall(rows(real), rows(fake), half=True)
  assert (values['precision'], values['recall']) == expected
  logits = fake.rows['inception/logits']
  score = scores.inception_score(logits, 2, shuffle_seed=2020)
  assert values['inception_score'] == score


def test_kid_from_a_thousand_images_on():
  fake, real = summary(1000, 1), summary(1001, 2)
  values, left_out = judges.compare(fake, real)
  expected = scores.kid(*(x.rows['inception/pool'] for x in (real, fake)))
  assert not left_out and (values['kid'], values['kid_std']) == expected


def test_what_cannot_be_told_is_left_out_with_a_reason():
  full = summary()
  alone, left_out = judges.compare(full)
  assert set(alone) == {'inception_score'} and 'reference' in str(left_out)
  bare = full._replace(
      rows={}, fits={'inception/pool': full.fits['inception/pool']}
  )
  values, left_out = judges.compare(full, bare)
  assert set(values) == {'fid', 'inception_score'}
  assert 'no statistics of inception/spatial' in left_out['sfid']
  assert 'no features' in left_out['precision, recall, kid']
  values, left_out = judges.compare(summary(3), full)
  assert '3 images' in left_out['precision, recall']


def test_other_networks_give_their_own_distances():
  spaces = (
      *SPACES,
      small_space.space('dinov2-vit-b', features=('pool',)),
      small_space.space('clip', features=('embedding',)),
  )
  fake, real = summary(spaces=spaces), summary(seed=3, spaces=spaces)
  values, _ = judges.compare(fake, real)
  assert set(values) == MAIN | {'fd_dinov2-vit-b', 'cmmd'}
  expected = scores.cmmd(
      real.rows['clip/embedding'], fake.rows['clip/embedding']
  )
  assert values['cmmd'] == expected
  assert 'clip/embedding' not in fake.fits
  assert 'dinov2-vit-b/pool' not in fake.rows


@pytest.fixture
def judge(tmp_path):
  np.savez(tmp_path / 'r.npz', small_space.images(40, 3))
  return judges.Judge(
      sharding.make_mesh(), SPACES, references.open_(tmp_path / 'r.npz')
  )


def test_the_record_has_every_setting_and_can_be_read(judge, tmp_path):
  judge.open_reference()
  found = judge.record(summary(), {'count': 40, 'seed': 0})
  judges.write(tmp_path / 'e' / 'a.json', found)
  again = judges.read(tmp_path / 'e' / 'a.json')
  assert again == json.loads(json.dumps(found))
  assert again['samples'] == {'count': 40, 'seed': 0}
  assert again['settings'] == {
      'weights_sha256': {'inception': '5' * 64},
      'reference_sha256': references.sha256(judge.reference),
      'reference_rows': 10_000,
      'inception_score_splits': 'of 5000 images, in order',
      'neighbours': 3,
      'neighbour_distances': 'float32',
  }
  assert again['reference']['count'] == 40
  assert {'jax', 'numpy', 'irepa_jax', 'devices'} <= set(again['made'])


def test_the_table_warns_of_few_images(judge):
  judge.open_reference()
  text = judges.table(judge.record(summary(), {'count': 40}))
  assert text.startswith('fid ') and 'without kid: 40 images' in text
  assert 'note: 40 images' in text
