"""The directory of a run: one job, one configuration, enough room.

Everything is checked before anything is compiled, by process 0, and every
process raises the same error. On disk: config.json and lock.json.
"""

import importlib.util
import json
import shutil

from absl import logging
from etils import epath

from irepa_jax import errors
from irepa_jax.distributed import processes
from irepa_jax.names import file_names
from irepa_jax.runs import lock

REMOTE = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}  # scheme -> package
SPARE = 2  # checkpoints that must fit beside one another while one is written


def open_(workdir, config, *, fields=None, force=False, state_bytes=0, keep=1):
  """Checks a run directory and locks it.

  Args:
    workdir: local path or gs:// address; made if absent.
    config: the resolved configuration, a dict that JSON can hold.
    fields: names -> configs.base.Field: which may differ from the run on disk,
      and what a field that is not there was.
    force: take the directory over although other keys differ.
    state_bytes: size of one checkpoint, for a warning when space is short.
    keep: checkpoints that are kept.

  Returns:
    A lock.Lock; release it at the end, or use it as a context.

  Raises:
    UsageError: the scheme is unknown or its package is missing, or nothing
      can be written there.
    CheckpointError: another job works there, or the run on disk was trained
      with another configuration.
  """
  check_scheme(workdir)
  held = lock.Lock(workdir)
  processes.on_first(held.take)
  try:
    held.check_seen()
    processes.on_first(
        lambda: check_config(workdir, config, fields=fields, force=force)
    )
    if processes.is_first():
      _warn_of_space(workdir, state_bytes, keep)
  except BaseException:
    held.release()
    raise
  return held


def check_scheme(workdir):
  """Raises UsageError for an address that this installation cannot open."""
  file_names.check(workdir)
  scheme, colon, _ = str(workdir).partition('://')
  if not colon:
    return _check_local(workdir)
  if scheme not in REMOTE:
    raise errors.UsageError(
        f'workdir {workdir}: unknown scheme {scheme!r}; local path, or one of'
        f' {", ".join(f"{s}://" for s in REMOTE)}'
    )
  if file_names.PATTERN.search(str(workdir)):
    raise errors.UsageError(
        f'workdir {workdir}: of a bucket without [ ] * ? \\, which its library'
        ' takes for a pattern'
    )
  package = REMOTE[scheme]
  if importlib.util.find_spec(package) is None:
    raise errors.UsageError(
        f'workdir {workdir}: {scheme}:// needs {package}: pip install {package}'
    )


def _check_local(workdir):
  """Raises UsageError for a folder that etils takes for a bucket, as /gs/x."""
  if '://' in (seen := str(epath.Path(workdir))):
    raise errors.UsageError(
        f'workdir {workdir} would be taken for {seen}: write /{workdir}'
    )


def check_config(workdir, config, *, fields=None, force=False):
  """Compares a configuration with that of the run on disk.

  Differences in free fields are logged; others raise CheckpointError with
  the keys, unless `force`. A field that the run on disk does not know is newer
  than the run, and had its default.
  """
  fields = fields or {}
  path = epath.Path(workdir) / 'config.json'
  wanted = json.loads(json.dumps(config))  # tuples become lists, as on disk
  if path.exists():
    old = json.loads(json.dumps(read_config(workdir, fields)))
    differ = [k for k in sorted({*old, *wanted}) if old.get(k) != wanted.get(k)]
    serious = [k for k in differ if k not in fields or not fields[k].free]
    if serious and not force:
      raise errors.CheckpointError(
          f'{workdir} was trained with {_changes(serious, old, wanted)}.'
          ' Use a new --workdir or --config.resume=force'
      )
    if differ:
      logging.warning('config: %s', _changes(differ, old, wanted))


def write_config(workdir, config):
  """Writes config.json: from now on the run is of this configuration."""
  lock.write_json(epath.Path(workdir) / 'config.json', config)


def read_config(workdir, fields):
  """Returns config.json, and the defaults of the fields that it has not.

  fields: names -> configs.base.Field. Raises CheckpointError, with the field,
  for a file that somebody has edited to what it cannot be.
  """
  path = epath.Path(workdir) / 'config.json'
  found = _read_json(path)
  if not isinstance(found, dict):
    raise errors.CheckpointError(
        f'{path} holds a {type(found).__name__}, not the fields of a run'
    )
  for name, field in fields.items():
    value = found.get(name, field.default)
    if not _alike(value, field.default):
      raise errors.CheckpointError(
          f'{path}: {name} is {value!r}; it must be of the kind of'
          f' {json.dumps(field.default)}'
      )
  return {name: field.default for name, field in fields.items()} | found


def _alike(value, default):
  """Whether a value of JSON may stand where the default stands."""
  if isinstance(default, tuple | list):
    return isinstance(value, tuple | list) and all(
        _alike(v, default[0]) for v in value
    )
  if isinstance(default, float):
    return isinstance(value, int | float) and not isinstance(value, bool)
  return type(value) is type(default)


def _changes(keys, old, new):
  """Returns 'depth=28, now 12; ...' for the first keys."""
  text = [f'{k}={old.get(k)!r}, now {new.get(k)!r}' for k in keys[:8]]
  more = f'; and {len(keys) - 8} more' if len(keys) > 8 else ''
  return '; '.join(text) + more


def _warn_of_space(workdir, state_bytes, keep):
  if '://' in str(workdir):
    return
  free = shutil.disk_usage(workdir).free
  if free < SPARE * state_bytes:
    logging.warning(
        '%s has %.1f GB free; a checkpoint takes %.1f GB and %d are kept:'
        ' saves will fail',
        workdir,
        free / 1e9,
        state_bytes / 1e9,
        keep,
    )


def _read_json(path):
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise errors.CheckpointError(f'{path} is damaged: {error}') from error
