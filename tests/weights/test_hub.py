"""The hub: cache first, and one line for each way in which it fails."""

import json
import socket

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
import pytest

from irepa_jax import errors
from irepa_jax.weights import hub


@pytest.fixture
def cache(monkeypatch, tmp_path):
  """A hub that cannot be reached, with a folder as its cache."""

  def look_up(repository, name):
    path = tmp_path / repository / name
    return str(path) if path.is_file() else None

  def no_network(*_):
    raise socket.gaierror('no address')

  monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', look_up)
  monkeypatch.setattr(socket, 'getaddrinfo', no_network)
  monkeypatch.setattr('urllib.request.getproxies', dict)
  folder = tmp_path / 'org' / 'name'
  folder.mkdir(parents=True)
  return folder


@pytest.fixture
def online(cache, monkeypatch):
  """A hub whose files are those of a folder."""
  remote = cache.parent / 'remote'
  remote.mkdir()

  def download(repository, name):
    if not (remote / name).is_file():
      raise raised(hub_errors.EntryNotFoundError)
    (cache / name).write_bytes((remote / name).read_bytes())
    return str(cache / name)

  monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: ['address'])
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  return remote


def raised(kind, text='many\nlines'):
  """Returns a hub error without the response that it is made from."""
  error = kind.__new__(kind)
  Exception.__init__(error, text)
  return error


def test_the_first_file_that_exists_is_taken(online):
  (online / 'b.pt').write_bytes(b'b')
  (online / 'c.pt').write_bytes(b'c')
  path = hub.fetch('org/name', ('a.pt', 'b.pt', 'c.pt'))
  assert path.read_bytes() == b'b'


def test_cached_files_need_no_network(cache):
  (cache / 'b.pt').write_bytes(b'b')
  assert hub.fetch('org/name', ('a.pt', 'b.pt')) == cache / 'b.pt'


def index(folder, shards):
  places = {str(i): shard for i, shard in enumerate(shards)}
  (folder / hub.INDEX).write_text(json.dumps({'weight_map': places}))


def test_an_index_brings_its_shards(online, cache):
  index(online, ['x', 'y', 'x'])
  for shard in 'xy':
    (online / shard).write_bytes(b'')
  assert hub.fetch('org/name') == cache / hub.INDEX
  assert (cache / 'x').is_file() and (cache / 'y').is_file()


def test_an_index_without_its_shards_is_refused(online):
  index(online, ['x'])
  with pytest.raises(errors.DataError, match='lists x: not there'):
    hub.fetch('org/name')


def test_files_that_no_repository_has_are_named(online):
  with pytest.raises(errors.DataError, match='no file a.pt or b.pt on the hub'):
    hub.fetch('org/name', ('a.pt', 'b.pt'))


def test_without_network_the_error_comes_at_once(cache, monkeypatch):
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', None)
  with pytest.raises(errors.DataError) as caught:
    hub.fetch('org/name', ('a.pt',))
  assert str(caught.value) == (
      'cannot download a.pt of org/name: no network. Fetch it elsewhere'
      ' (hf download org/name a.pt) and give the path of the file'
  )


def test_offline_mode_is_obeyed(online, monkeypatch):
  (online / 'a.pt').write_bytes(b'a')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(errors.DataError, match='HF_HUB_OFFLINE is set'):
    hub.fetch('org/name', ('a.pt',))


@pytest.mark.parametrize(
    'error, text',
    [
        (hub_errors.GatedRepoError, 'is gated: accept .*org/name.*auth login'),
        (hub_errors.RepositoryNotFoundError, 'no repository on the hub'),
        (hub_errors.LocalEntryNotFoundError, 'no network'),
        (OSError, r'name: many\. Fetch'),
        (ValueError, r'name: many\. Fetch'),
    ],
)
def test_each_refusal_of_the_hub_is_one_line(online, monkeypatch, error, text):
  def refuse(*_):
    raise raised(error)

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', refuse)
  with pytest.raises(errors.DataError, match=text) as caught:
    hub.fetch('org/name', ('a.pt',))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'repository', ['org/../name', '../secret', 'org/na\nme', '/etc', 'a b/c', '']
)
def test_what_cannot_be_a_name_is_refused_before_the_network(repository):
  with pytest.raises(errors.DataError, match='no name on the hub') as raised:
    hub.fetch(repository, ('model.safetensors',))
  assert '\n' not in str(raised.value)


def test_a_file_outside_a_repository_is_refused():
  with pytest.raises(errors.DataError, match='no name on the hub'):
    hub.fetch('org/name', ('../../x.safetensors',))
