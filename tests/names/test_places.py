"""Outputs are tried before the work; a cache is had or not."""

import pytest

from irepa_jax import errors
from irepa_jax.names import places


@pytest.fixture(autouse=True)
def forgotten():
  places.cache.cache_clear()
  yield
  places.cache.cache_clear()


@pytest.mark.parametrize(
    'home', ['/dev/null', '/proc/nobody', '~nobody_of_this_name', 'file']
)
def test_without_a_writable_home_there_is_no_cache(
    home, tmp_path, monkeypatch, caplog
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', home)
  assert places.cache() is None and places.cache() is None
  assert caplog.text.count('nothing is cached') == 1
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_an_empty_variable_is_as_none(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert places.cache() == tmp_path / '.cache/irepa_jax'


@pytest.mark.parametrize(
    'path', ['/dev/null/x.json', '/proc/x.json', 'file/deep/x', 'folder', '.']
)
def test_a_file_that_cannot_be_written_is_refused(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  (tmp_path / 'folder').mkdir()
  with pytest.raises(errors.UsageError, match='^out .*') as caught:
    places.try_file(path)
  assert path in str(caught.value)


@pytest.mark.parametrize('path', ['x', 'new/deep/x.json', 'gs://bucket/x', 'file'])
def test_trying_leaves_nothing(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  places.try_file(path)
  assert [p.name for p in tmp_path.iterdir()] == ['file']
