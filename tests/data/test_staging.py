"""Data sets in buckets; fsspec's own remote file systems stand in for gs://."""

import shutil

import data_sets
import fsspec
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.data import pipeline
from irepa_jax.data import staging
from irepa_jax.evals import image_sets

ADDRESS = 'memory://bucket/a b [1]/set'


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A local data set, also under ADDRESS; copies go below tmp_path."""
  monkeypatch.setenv(staging.VARIABLE, str(tmp_path / 'cache'))
  monkeypatch.setattr(staging, 'PAUSE_S', 0)
  data_sets.write(tmp_path / 'set')
  remote = fsspec.filesystem('memory')
  for file in (tmp_path / 'set').iterdir():
    remote.pipe_file(f'{ADDRESS}/{file.name}', file.read_bytes())
  yield tmp_path
  remote.store.clear()


def test_a_bucket_gives_the_same_batches(here, capsys):
  batch = dict(batch_size=16, seed=3, flips=True)
  for one, other in zip(
      *(
          [next(pipeline.batches(pipeline.load(place), **batch))[k] for k in keys]
          for place in (here / 'set', ADDRESS)
          for keys in [('label', 'moments', 'image')]
      ),
      strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  assert 'data to local disk: 100%' in capsys.readouterr().err


@pytest.mark.parametrize('scheme', ['file', 'local', 'memory'])
def test_any_address_of_fsspec_is_read(here, scheme):
  address = ADDRESS if scheme == 'memory' else f'{scheme}://{here}/set'
  assert len(pipeline.load(address)) == 50


def test_other_readers_of_data_sets_take_an_address(here):
  assert image_sets.open_(ADDRESS).count == 50
  assert len(inputs.open_pictures(ADDRESS, data_sets.SIZE, 0)) == 50


def test_a_second_start_copies_nothing_and_a_cut_one_goes_on(here, monkeypatch):
  folder = pipeline.load(ADDRESS).records.folder
  before = {p: p.stat().st_mtime_ns for p in folder.glob('*.array_record')}
  cut = sorted(before)[1]
  cut.write_bytes(cut.read_bytes()[:100])
  pipeline.load(ADDRESS)
  after = {p: p.stat().st_mtime_ns for p in folder.glob('*.array_record')}
  assert {p for p in before if before[p] != after[p]} == {cut}
  monkeypatch.setattr(staging, '_fetch', lambda *_: pytest.fail('copied'))
  pipeline.load(ADDRESS)
  assert not list(folder.glob('*.tmp'))


def test_another_data_set_at_the_address_is_copied_anew(here):
  pipeline.load(ADDRESS)
  data_sets.write(here / 'other', count=20)
  for file in (here / 'other').iterdir():
    fsspec.filesystem('memory').pipe_file(
        f'{ADDRESS}/{file.name}', file.read_bytes()
    )
  assert len(pipeline.load(ADDRESS)) == 20
  assert len(list((here / 'cache').iterdir())) == 2


@pytest.mark.parametrize(
    'address, message',
    [
        ('memory://bucket/nothing', 'no manifest.json under memory://'),
        ('nonsense://bucket/x', 'cannot be opened: ValueError'),
        ('gs://bucket/x', 'cannot be (opened|read)'),
        ('https://127.0.0.1:9/x', 'cannot be (opened|read)'),
    ],
)
def test_what_cannot_be_read_is_one_line(here, address, message):
  with pytest.raises(errors.DataError, match=message) as caught:
    pipeline.load(address)
  assert '\n' not in str(caught.value)


def test_a_missing_or_cut_shard_is_named(here):
  remote, name = fsspec.filesystem('memory'), 'data-1.array_record'
  whole = (here / 'set' / name).read_bytes()
  remote.pipe_file(f'{ADDRESS}/{name}', whole[:-7])
  with pytest.raises(errors.DataError, match=f'{name} cannot be copied.*bytes'):
    pipeline.load(ADDRESS)
  remote.rm_file(f'{ADDRESS}/{name}')
  with pytest.raises(errors.DataError, match=f'{name} cannot .*FileNotFound'):
    pipeline.load(ADDRESS)


def test_a_disk_without_room_is_told_before(here, monkeypatch):
  full = shutil.disk_usage(here)._replace(free=10)
  monkeypatch.setattr(staging.shutil, 'disk_usage', lambda _: full)
  with pytest.raises(errors.DataError, match=f'{staging.VARIABLE} names another'):
    pipeline.load(ADDRESS)
