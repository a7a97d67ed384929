"""The experiments that ship with the package, found from any folder.

`--config=sit_xl:repa` and `--config=configs/sit_xl.py:repa` name a shipped
file wherever the command is typed, and a file of one's own may say `from
configs import base`. Python alone cannot promise that: `python -m` looks in the
current folder first, and a project there may well have a folder `configs`. So
`configs` is made one package of both: the shipped folder, then the others.
"""

import importlib
import pathlib
import pkgutil
import sys
import types

from irepa_jax import errors

FOLDER = pathlib.Path(__file__).resolve().parents[1].joinpath('configs').resolve()


def _open():
  """Imports configs.base, from the shipped folder whatever else is there."""
  try:
    package = importlib.import_module('configs')
  except Exception:  # there is none, or that of another project fails
    package = sys.modules['configs'] = types.ModuleType('configs')
  others = [p for p in getattr(package, '__path__', ()) if p != str(FOLDER)]
  package.__path__ = pkgutil.extend_path([str(FOLDER), *others], 'configs')
  module = importlib.import_module('configs.base')
  if pathlib.Path(module.__file__).resolve() != FOLDER / 'base.py':
    raise ImportError(
        f'configs.base was imported from {module.__file__}; irepa_jax needs'
        f' {FOLDER / "base.py"}: import irepa_jax first, or rename that folder'
    )
  return module


base = _open()
NAMES = tuple(
    sorted(p.stem for p in FOLDER.glob('*.py') if p.stem not in ('__init__', 'base'))
)


def path(name):
  """Returns the file that --config names, without its preset.

  A file that is there is itself; otherwise `sit_xl`, `sit_xl.py`,
  `configs/sit_xl` and `configs/sit_xl.py` are the shipped one. UsageError
  where there is neither.
  """
  given = pathlib.Path(name)
  if given.suffix and given.is_file():
    return given
  shipped = FOLDER / f'{given.stem}.py'
  if given.parts[:-1] in ((), ('configs',)) and given.stem in NAMES:
    return shipped
  if given.is_file():
    return given
  raise errors.UsageError(
      f'config file {name!r} not found (in {pathlib.Path.cwd()}); shipped:'
      f' {" ".join(NAMES)}'
  )
