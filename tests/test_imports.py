"""The import direction of the package, read from the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'irepa_jax'

# A module may import from lower layers and from its own package. Packages of
# one layer do not see each other, except inside the lowest layer.
LAYERS = {
    0: {'errors'},
    1: {
        'checkpoint',
        'cluster',
        'convert',
        'digest',
        'distributed',
        'host_memory',
        'hub',
        'lock',
        'logs',
        'orbax_noise',
        'preemption',
        'processes',
        'rendezvous',
        'resize',
        'rundir',
        'saved_step',
        'sharding',
        'throughput',
        'torch_files',
        'weights',
    },
    2: {'alignment', 'data', 'diffusion', 'models'},
    3: {'encoders'},
    4: {'analysis', 'evals', 'train'},
    5: {'build', 'check', 'official', 'saved_run'},
    6: {'cli', 'evaluation', 'main', 'reports', 'scoring', 'tools', 'trainer'},
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names}
OPEN = {1, 5, 6}  # layers whose modules may import one another
FLAX = {'models', 'encoders'}
FILES = sorted(ROOT.rglob('*.py'))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f'{node.module}.{name.name}' for name in node.names)


def unit(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  here = unit(path)
  if here == '__init__':
    return
  for name in imports(path):
    if not name.startswith('irepa_jax.'):
      continue
    there = name.split('.')[1]
    if there == here:
      continue
    same = LEVEL[there] == LEVEL[here] and LEVEL[here] in OPEN
    assert LEVEL[there] < LEVEL[here] or same, f'{here} imports {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flax_stays_in_models_and_encoders(path):
  if unit(path) not in FLAX:
    found = [n for n in imports(path) if n.split('.')[0] == 'flax']
    assert not found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_neither_torch_nor_tensorflow(path):
  roots = {name.split('.')[0] for name in imports(path)}
  allowed = {'torch'} if path.name == 'benchmark_torch.py' else set()
  assert not (roots & {'torch', 'tensorflow', 'timm'}) - allowed


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_top_reads_configs(path):
  if LEVEL.get(unit(path), 0) < LEVEL['build']:
    assert not [n for n in imports(path) if n.startswith('ml_collections')]
