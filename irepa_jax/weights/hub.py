"""Files from the Hugging Face hub: from the cache, or else downloaded.

A file that is in the cache is used as it is, so a run finds the weights it
began with, and needs no network. HF_HUB_OFFLINE, HF_HOME and HF_ENDPOINT are
obeyed, as by all programs that use the hub.
"""

import json
import pathlib
import re
import socket
import urllib.parse
import urllib.request

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from irepa_jax import errors

INDEX = 'model.safetensors.index.json'
NAMES = ('model.safetensors', INDEX, 'pytorch_model.bin')
HTTPS = 443
ID = re.compile(r'[\w.-]+(/[\w.-]+)*')  # of a repository, or of a file in it


def fetch(repository, names=NAMES):
  """Returns the local path of the first of `names` that a repository has.

  Of an index the files that it lists are fetched too. Raises DataError.
  """
  for text in (repository, *names):
    if not ID.fullmatch(text) or '..' in text or '--' in repository:
      raise errors.DataError(
          f'{text!r} is no file here, and no name on the hub: org/name, or'
          ' org/name:FILE'
      )
  for find in (_cached, _remote):
    for name in names:
      path = find(repository, name)
      if path and name.endswith('.index.json'):
        _fetch_listed(repository, name, path)
      if path:
        return path
  raise errors.DataError(
      f'{repository} has no file {" or ".join(names)} on the hub; name one:'
      f' {repository}:FILE'
  )


def _fetch_listed(repository, index, path):
  folder = pathlib.PurePosixPath(index).parent
  for name in sorted(set(json.loads(path.read_text())['weight_map'].values())):
    file = str(folder / name)
    if not (_cached(repository, file) or _remote(repository, file)):
      raise errors.DataError(f'{repository}: {index} lists {name}: not there')


def _cached(repository, name):
  path = huggingface_hub.try_to_load_from_cache(repository, name)
  return pathlib.Path(path) if isinstance(path, str) else None


def _remote(repository, name):
  """Returns a local path, or None where the repository has no such file."""
  if constants.HF_HUB_OFFLINE:
    raise _unreachable(repository, name, 'HF_HUB_OFFLINE is set')
  if not _resolves():
    raise _unreachable(repository, name, 'no network')
  return _download(repository, name)


def _download(repository, name):
  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(repository, name))
  except hub_errors.GatedRepoError as error:
    raise errors.DataError(
        f'{repository} is gated: accept its licence at'
        f' {constants.ENDPOINT}/{repository}, then run `hf auth login` (on a'
        ' pod: on every host)'
    ) from error
  except hub_errors.RepositoryNotFoundError as error:
    raise errors.DataError(
        f'{repository} is no file here and no repository on the hub that this'
        ' account may read'
    ) from error
  except hub_errors.LocalEntryNotFoundError as error:
    raise _unreachable(repository, name, 'no network') from error
  except hub_errors.EntryNotFoundError:
    return None
  except (OSError, ValueError) as error:
    reason = str(error).strip().partition('\n')[0]
    raise _unreachable(repository, name, reason) from error


def _resolves():
  """Returns whether the hub's name is known; a proxy looks it up itself."""
  if urllib.request.getproxies():
    return True
  host = urllib.parse.urlparse(constants.ENDPOINT).hostname
  try:
    return bool(socket.getaddrinfo(host, HTTPS))
  except OSError:
    return False


def _unreachable(repository, name, reason):
  return errors.DataError(
      f'cannot download {name} of {repository}: {reason}. Fetch it elsewhere'
      f' (hf download {repository} {name}) and give the path of the file'
  )
