"""Every state in which a crash can leave the files of a program.

`record` has strace write down the system calls with which a program changes
files below a folder; `states` replays them and yields the folder after each of
them, and with each write done by half. That the last state equals the folder
itself shows that nothing was missed.

  python tests/crash_states.py  # records tests/golden/crash_*.json.gz anew
"""

import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
CALLS = (
    'openat,creat,write,pwrite64,writev,pwritev,ftruncate,truncate,rename,'
    'renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat,lseek,'
    'copy_file_range,sendfile,fallocate'
)
CALL = re.compile(r'^(\d+) +(\w+)\((.*)\) += +(-?\d+)')
PART = re.compile(r'^(\d+) +(\w+\(.*) <unfinished \.\.\.>$')
REST = re.compile(r'^(\d+) +<\.\.\. \w+ resumed>(.*)$')
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
OPENED = re.compile(r'(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>')
SAVE = """
import sys
import jax, jax.numpy as jnp
from irepa_jax.checkpoints import manager
state = {
    'kernel': jnp.arange(64.0).reshape(8, 8),
    'ema': ({'bias': jnp.ones(3, jnp.bfloat16)},),
    'step': jnp.int32(0),
}
checkpoints = manager.Checkpoints(sys.argv[1], keep=1)
for step in map(int, sys.argv[2:]):
  moved = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state)
  checkpoints.save(step, moved, {'position': step})
checkpoints.close()
"""
PREPARE = """
import sys
from irepa_jax.jobs import prepare
prepare.prepare(
    'digits', sys.argv[1], image_size=8, autoencoder='haar', image_format='png',
    max_images=6, shard_size=3,
)
"""


def record(script, folder, *words):
  """Runs a script; returns the changes below `folder` in their order."""
  with tempfile.TemporaryDirectory() as scratch:
    trace = pathlib.Path(scratch, 'trace')
    subprocess.run(
        [
            'strace', '-f', '-y', '-xx', '-s', '100000000', '-e', CALLS,
            '-o', trace, sys.executable, '-c', script, folder, *words,
        ],
        check=True,
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    return list(_changes(_whole(trace.read_text().splitlines()), folder))


def states(before, changes):
  """Yields {name: bytes, or None for a folder} of each state, each once."""
  files, seen = dict(before), set()
  for change in changes:
    kind, name, *rest = change
    halves = (2, 1) if kind == 'write' and len(rest[1]) > 1 else (1,)
    start = files
    for half in halves:
      files = dict(start)
      _apply(files, kind, name, *_torn(rest, half))
      key = hash(tuple(sorted(files.items(), key=lambda item: item[0])))
      if key not in seen:
        seen.add(key)
        yield files


def read(folder):
  """Returns the files and folders below a folder, as `states` has them."""
  folder = pathlib.Path(folder)
  return {
      str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
      for path in folder.rglob('*')
  }


def write(files, folder):
  """Makes a folder anew with the files of a state."""
  folder = pathlib.Path(folder)
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  for name, data in sorted(files.items()):
    if data is None:
      (folder / name).mkdir()
    else:
      (folder / name).write_bytes(data)


def load(name):
  """Returns (files before, changes) of a recording in tests/golden."""
  content = json.loads(gzip.decompress((GOLDEN / f'crash_{name}').read_bytes()))
  before = {
      name: None if data is None else bytes.fromhex(data)
      for name, data in content['before'].items()
  }
  changes = [
      (kind, name, rest[0], bytes.fromhex(rest[1])) if kind == 'write'
      else (kind, name, *rest)
      for kind, name, *rest in content['changes']
  ]  # fmt: skip
  return before, changes


def store(name, before, changes):
  """Writes a recording to tests/golden."""
  text = json.dumps(
      {'before': before, 'changes': changes}, default=lambda data: data.hex()
  )
  (GOLDEN / f'crash_{name}').write_bytes(gzip.compress(text.encode(), mtime=0))


def recorded_save(folder):
  """Records the save of step 2 after that of step 1; keep=1 removes that."""
  arguments = [sys.executable, '-c', SAVE, str(folder), '1']
  environment = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  subprocess.run(
      arguments, check=True, cwd=ROOT, env=os.environ | environment
  )
  before = read(folder)
  return before, record(SAVE, folder, '2')


def _torn(rest, half):
  if half == 1:
    return rest
  return [rest[0], rest[1][: len(rest[1]) // half]]


def _apply(files, kind, name, *rest):
  """Does one change to the files of a state."""
  if kind == 'folder':
    files[name] = None
  elif kind == 'open':
    files[name] = b'' if rest[0] else files.get(name, b'')
  elif kind == 'write':
    offset, data = rest
    old = files[name].ljust(offset, b'\0')
    files[name] = old[:offset] + data + old[offset + len(data) :]
  elif kind == 'truncate':
    files[name] = files[name][: rest[0]].ljust(rest[0], b'\0')
  elif kind == 'remove':
    del files[name]
  elif kind == 'link':
    files[rest[0]] = files[name]
  else:  # rename, of a folder with all that is in it
    for old in [k for k in files if k == name or k.startswith(name + '/')]:
      files[rest[0] + old[len(name) :]] = files.pop(old)


def _whole(lines):
  """Yields lines with calls put together that another thread interrupted."""
  parts = {}
  for line in lines:
    if part := PART.match(line):
      parts[part[1]] = part[2]
    elif rest := REST.match(line):
      yield f'{rest[1]} {parts.pop(rest[1])}{rest[2]}'
    else:
      yield line


def _changes(lines, folder):
  """Yields the changes below a folder as (kind, name, ...)."""
  place = {}  # of each open file
  for call in filter(None, map(CALL.match, lines)):
    name, arguments, result = call[2], call[3], int(call[4])
    if result < 0:
      continue
    opened = [(n, _unhex(path)) for n, path in OPENED.findall(arguments)]
    texts = list(map(_unhex, TEXT.findall(arguments)))
    if name in ('write', 'writev', 'pwrite64', 'pwritev'):
      number, path = opened[0]
      at = place.get(number, 0)
      if name.startswith('p'):
        at = int(arguments.rsplit(', ', 1)[1])
      else:
        place[number] = at + result
      data = b''.join(texts)[:result]
      found = [('write', path, at, data)]
    elif name == 'openat':
      place[str(result)] = 0
      base = opened[0][1] if opened else b''
      found = []
      if 'O_CREAT' in arguments or 'O_TRUNC' in arguments:
        path = os.path.join(base, texts[0])
        found = [('open', path, 'O_TRUNC' in arguments)]
    elif name == 'lseek':
      place[opened[0][0]] = result
      found = []
    elif name == 'ftruncate':
      length = int(arguments.rsplit(', ', 1)[1])
      found = [('truncate', opened[0][1], length)]
    else:
      bases = [path for _, path in opened] or [b'']
      pairs = zip(bases * len(texts), texts, strict=False)
      paths = [os.path.join(base, text) for base, text in pairs]
      found = [(_kind(name), *paths)]
    yield from _below(found, os.fsencode(folder) + b'/')


def _kind(name):
  kinds = {'mkdir': 'folder', 'unlink': 'remove', 'rmdir': 'remove'}
  kinds |= {'rename': 'rename', 'link': 'link'}
  found = re.sub(r'at\d?$', '', name)
  if found not in kinds:
    raise NotImplementedError(f'the call {name}')
  return kinds[found]


def _below(changes, folder):
  """Yields changes with names relative to the folder; others are left out."""
  for kind, path, *rest in changes:
    if path.startswith(folder):
      relative = lambda p: p.removeprefix(folder).decode()
      if kind in ('rename', 'link'):
        rest = [relative(p) for p in rest]
      yield kind, relative(path), *rest


def _unhex(text):
  return bytes.fromhex(text.replace('\\x', ''))


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as scratch:
    store('save.json.gz', *recorded_save(pathlib.Path(scratch, 'checkpoints')))
    out = pathlib.Path(scratch, 'data')
    out.mkdir()
    store('prepare.json.gz', {}, record(PREPARE, out))
