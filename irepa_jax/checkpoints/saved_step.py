"""One step of a checkpoint on disk: its record, and reading it back.

A step is a folder with `state` (arrays, by orbax) and `meta` (JSON): the shape,
dtype and digest of every leaf, what the caller wants to remember, and a
checksum of the JSON itself. Reading compares shapes and dtypes first, because
orbax would cast; the digests are compared by the caller, on every process.
"""

import contextlib
import errno
import functools
import json
from typing import Any
from typing import NamedTuple
import zlib

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from irepa_jax import errors
from irepa_jax.checkpoints import digest
from irepa_jax.names import file_names

# Errors of a file system that speak of the files; all others of the storage.
ABSENT = errno.ENOENT, errno.ENOTDIR, errno.EISDIR
# Errors of the surroundings, not of the files (names of gRPC and absl).
NOT_DAMAGE = (
    'RESOURCE_EXHAUSTED',
    'PERMISSION_DENIED',
    'UNAUTHENTICATED',
    'UNAVAILABLE',
    'DEADLINE_EXCEEDED',
)


class Damaged(Exception):
  """The files of a step are not what was saved; the text says where."""


class Found(NamedTuple):
  """What was read: arrays, the record, and where in the state they belong."""

  tree: Any
  record: dict[str, Any]
  prefix: str = ''


def flat(tree):
  """Returns {leaf path: leaf}, the form in which orbax gets a state.

  Containers without leaves (optax.EmptyState) leave no trace on disk.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {digest.leaf_path(path): leaf for path, leaf in leaves}


def record(step, state, meta):
  """Returns what is stored beside the arrays, with a checksum of itself."""
  digests = digest.digest(state)
  leaves = {
      name: {
          'dtype': str(x.dtype),
          'shape': list(x.shape),
          'digest': digests[name],
      }
      for name, x in flat(state).items()
  }
  content = {'format': 1, 'step': int(step), 'meta': meta, 'leaves': leaves}
  return {**content, 'crc32': _crc(content)}


def verify(found):
  """Raises Damaged unless the leaves have the digests that were recorded."""
  saved = found.record['leaves']
  now = {found.prefix + k: v for k, v in digest.digest(found.tree).items()}
  wrong = [name for name, v in now.items() if saved[name]['digest'] != v]
  if wrong:
    more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
    raise Damaged(f'{wrong[0]}{more}: digest mismatch')


def read_state(folder, abstract):
  """Returns the whole state as Found, sharded as `abstract` says.

  Raises:
    CheckpointError: it has other leaves, shapes or dtypes.
    Damaged: a file is missing, short or not what was written.
  """
  with _reading(folder):
    content = _read_record(folder)
    wanted = flat(abstract)
    _compare(folder, content['leaves'], wanted)
    leaves = _read_arrays(folder, wanted)
    tree = jax.tree.unflatten(
        jax.tree.structure(abstract), [leaves[name] for name in wanted]
    )
    return Found(tree, content)


def read_part(folder, name, shard):
  """Returns the leaves below `name` (such as 'ema/0') as Found.

  shard: nested dicts of jax.ShapeDtypeStruct -> the like of shardings.
  """
  prefix = name.strip('/') + '/'
  with _reading(folder):
    content = _read_record(folder)
    shapes = {
        leaf.removeprefix(prefix): _shape(saved)
        for leaf, saved in content['leaves'].items()
        if leaf.startswith(prefix)
    }
    if not shapes:
      known = sorted({'/'.join(k.split('/')[:2]) for k in content['leaves']})
      raise errors.CheckpointError(
          f'{folder} has no {name!r}; it has {", ".join(known[:12])}'
      )
    shapes = _nest(shapes)
    shapes = jax.tree.map(_with_sharding, shapes, shard(shapes))
    leaves = _read_arrays(
        folder, {prefix + k: x for k, x in flat(shapes).items()}
    )
    tree = _nest({k.removeprefix(prefix): x for k, x in leaves.items()})
    return Found(tree, content, prefix)


def line(error):
  """Returns the first line of an error, shortened."""
  text = str(error).strip().split('\n')[0]
  return f'{type(error).__name__}: {text}'[:160]


def _read_arrays(folder, wanted):
  """Returns {leaf path: array} for the leaves asked for, and reads no other."""
  args = ocp.args.PyTreeRestore(
      item=wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
  )
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    found = handler.restore(for_orbax(folder) / 'state', args=args)
  # Of what its own description no longer names, orbax returns the shape.
  for name, leaf in wanted.items():
    if not isinstance(found.get(name), jax.Array):
      raise Damaged(f'{name}: no array under this name')
    if _kind(found[name]) != _kind(leaf):
      raise Damaged(f'{name}: {_kind(found[name])}, not {_kind(leaf)}')
  return found


def absolute(path):
  """Returns a path that does not depend on the current folder."""
  path = epath.Path(path)
  return path if '://' in str(path) else path.absolute()


def for_orbax(path):
  """Returns another path to a folder, which orbax takes for no pattern."""
  return epath.Path(file_names.plain(path))


def _shape(saved):
  return jax.ShapeDtypeStruct(tuple(saved['shape']), jnp.dtype(saved['dtype']))


def _with_sharding(x, sharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _nest(leaves):
  """Returns nested dicts from {'a/b/c': leaf}."""
  tree = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    functools.reduce(lambda t, key: t.setdefault(key, {}), parents, tree)[
        last
    ] = leaf
  return tree


def _compare(folder, saved, wanted):
  """Refuses a step whose leaves are not those of this run."""
  saved = {name: _kind(_shape(leaf)) for name, leaf in saved.items()}
  wanted = {name: _kind(leaf) for name, leaf in wanted.items()}
  wrong = [
      f'{name}: saved {saved.get(name, "nothing")},'
      f' wanted {wanted.get(name, "nothing")}'
      for name in sorted(saved.keys() | wanted.keys())
      if saved.get(name) != wanted.get(name)
  ]
  if wrong:
    more = f' (and {len(wrong) - 3} more)' if len(wrong) > 3 else ''
    raise errors.CheckpointError(
        f'{folder} belongs to another model or optimiser:'
        f' {"; ".join(wrong[:3])}{more}'
    )


def _kind(x):
  """Returns 'float32[64,32]'."""
  return f'{x.dtype}[{",".join(map(str, x.shape))}]'


def _read_record(folder):
  content = json.loads((folder / 'meta' / 'metadata').read_text())
  if content.pop('crc32') != _crc(content):
    raise Damaged('meta: checksum mismatch')
  return content


def _crc(content):
  text = json.dumps(content, sort_keys=True)
  return f'{zlib.crc32(text.encode()):08x}'


@contextlib.contextmanager
def _reading(folder):
  """Turns any complaint about the files into Damaged; keeps it to one line."""
  try:
    yield
  except (Damaged, errors.CheckpointError, MemoryError):
    raise
  except Exception as raised:  # of orbax, TensorStore, JSON: many types
    number = getattr(raised, 'errno', None)
    if number not in (None, *ABSENT) or any(
        name in str(raised) for name in NOT_DAMAGE
    ):
      raise errors.CheckpointError(
          f'cannot read {folder}: {line(raised)}'
      ) from raised
    raise Damaged(line(raised)) from raised
