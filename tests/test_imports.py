"""The import direction of the package, read from the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'irepa_jax'

# The floors of the house: a module may import from lower floors and from its
# own room; the rooms of one floor do not see each other. Only `jobs` are called
# by `main` and `tools`, and nothing imports `tools`.
FLOORS = (
    {'errors', 'resize'},
    {'names'},
    {'alignment', 'check', 'configs', 'diffusion', 'distributed', 'weights'},
    {'checkpoints', 'cli', 'data', 'models', 'runs', 'train'},
    {'encoders'},
    {'analysis', 'evals'},
    {'build'},
    {'jobs'},
    {'main', 'tools'},
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
ROOT_FILES = {
    '__init__', 'alignment', 'build', 'check', 'cli', 'errors', 'main', 'resize'
}  # fmt: skip
FLAX = {'models', 'encoders'}
FILES = sorted(ROOT.rglob('*.py'))
LINES = 400  # of a file that is no table
TABLES = {'encoders/rows.py'}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f'{node.module}.{name.name}' for name in node.names)


def unit(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def test_the_root_holds_what_a_newcomer_reads_first():
  assert {path.stem for path in ROOT.glob('*.py')} == ROOT_FILES
  rooms = {path.parent.name for path in ROOT.glob('*/__init__.py')}
  assert rooms | ROOT_FILES - {'__init__'} == set(FLOOR)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  here = unit(path)
  if here == '__init__':
    return
  for name in imports(path):
    if not name.startswith('irepa_jax.'):
      continue
    there = name.split('.')[1]
    assert there == here or FLOOR[there] < FLOOR[here], f'{here}: {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_idea(path):
  if str(path.relative_to(ROOT)) not in TABLES:
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flax_stays_in_models_and_encoders(path):
  if unit(path) not in FLAX:
    found = [n for n in imports(path) if n.split('.')[0] == 'flax']
    assert not found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_neither_torch_nor_tensorflow(path):
  roots = {name.split('.')[0] for name in imports(path)}
  allowed = {'torch'} if path.name == 'pytorch.py' else set()
  assert not (roots & {'torch', 'tensorflow', 'timm'}) - allowed


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_top_reads_configs(path):
  if FLOOR.get(unit(path), 0) < FLOOR['build'] and unit(path) != 'cli':
    assert not [n for n in imports(path) if n.startswith('ml_collections')]
