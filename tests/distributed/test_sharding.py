"""Meshes and specs from paths."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.distributed import sharding


def test_mesh_takes_all_devices():
  mesh = sharding.make_mesh(model=2)
  assert dict(mesh.shape) == {'replica': 1, 'data': 4, 'model': 2}


@pytest.mark.parametrize(
    'sizes, message', [((16, 1), 'there are 8'), ((4, 1), '4 of 8 devices idle')]
)
def test_mesh_of_another_size_is_refused(sizes, message):
  with pytest.raises(errors.UsageError, match=message):
    sharding.make_mesh(*sizes)


def test_subset_of_devices_when_asked():
  assert sharding.make_mesh(4, allow_subset=True).size == 4


@pytest.fixture
def two_groups(monkeypatch):
  """Devices 0, 2, 4, 6 share a fast network, and 1, 3, 5, 7 another."""
  monkeypatch.setattr(sharding, 'group', lambda device: device.id % 2)


@pytest.mark.parametrize(
    'asked, shape, groups',
    [
        ({}, (2, 4, 1), [0, 0, 0, 0, 1, 1, 1, 1]),
        ({'model': 2}, (2, 2, 2), [0, 0, 0, 0, 1, 1, 1, 1]),
        ({'replica': 1}, (1, 8, 1), [0, 0, 0, 0, 1, 1, 1, 1]),
        ({'replica': 4, 'model': 2}, (4, 1, 2), [0, 0, 0, 0, 1, 1, 1, 1]),
        ({'data': 1, 'allow_subset': True}, (2, 1, 1), [0, 1]),
    ],
)
def test_the_last_axes_of_a_mesh_stay_within_a_group(
    two_groups, asked, shape, groups
):
  mesh = sharding.make_mesh(**asked)
  assert mesh.devices.shape == shape
  assert [sharding.group(device) for device in mesh.devices.flat] == groups
  assert sharding.row_parts(mesh) == shape[0] * shape[1]


def test_weights_are_split_within_a_group_and_rows_over_all(two_groups):
  mesh = sharding.make_mesh()
  assert sharding.param_spec('a/kernel', (192, 768), mesh) == P(None, 'data')
  rows = sharding.batch_sharding(mesh).shard_shape((16, 3))
  assert rows == (2, 3)


@pytest.mark.parametrize(
    'asked, message',
    [
        ({'model': 8, 'replica': 1}, 'does not fit 8 in 2 groups'),
        ({'data': 8}, 'replica 2 x data 8 x model 1 needs 16 devices, there are 8 in 2'),
        ({'data': 2}, 'leaves 4 of 8 devices idle'),
    ],
)
def test_a_mesh_that_groups_cannot_form_is_refused(two_groups, asked, message):
  with pytest.raises(errors.UsageError, match=message):
    sharding.make_mesh(**asked)


def test_groups_of_other_sizes_are_refused(monkeypatch):
  monkeypatch.setattr(sharding, 'group', lambda device: device.id // 5)
  with pytest.raises(errors.UsageError, match='groups of 5, 3 devices'):
    sharding.make_mesh()


def test_batch_that_does_not_divide_names_its_neighbours():
  with pytest.raises(errors.UsageError, match='nearest: 8, 16'):
    sharding.check_batch(12, sharding.make_mesh())


def test_fsdp_splits_the_largest_axis_that_divides():
  mesh = sharding.make_mesh()
  assert sharding.param_spec('a/kernel', (192, 768), mesh) == P(None, 'data')
  assert sharding.param_spec('a/kernel', (1152, 33), mesh) == P('data', None)
  assert sharding.param_spec('a/bias', (768,), mesh) == P(None)


def test_tensor_parallel_rules_leave_the_other_axis_to_fsdp():
  mesh = sharding.make_mesh(4, 2)
  fc1 = sharding.param_spec('blocks_0/mlp/fc1/kernel', (256, 1024), mesh)
  fc2 = sharding.param_spec('blocks_0/mlp/fc2/kernel', (1024, 256), mesh)
  assert fc1 == P('data', 'model')
  assert fc2 == P('model', 'data')


def test_optimiser_state_is_split_like_its_parameter():
  mesh = sharding.make_mesh()
  params = {'fc': {'kernel': np.zeros((256, 512))}}
  state = {'params': params, 'opt': ({'mu': params},)}
  specs = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(state, mesh))
  assert specs['params'] == specs['opt'][0]['mu']


def test_put_places_every_shard():
  mesh = sharding.make_mesh()
  tree = {'w': np.arange(2**15, dtype=np.float32).reshape(2**8, -1)}
  placed = sharding.put(tree, sharding.tree_shardings(tree, mesh))
  np.testing.assert_array_equal(placed['w'], tree['w'])
  assert len({str(s.index) for s in placed['w'].addressable_shards}) == 8


@pytest.mark.parametrize(
    ('name', 'whole'),
    [
        ('model/x_embedder/proj/kernel', True),
        ('patch_embed/proj/kernel', True),
        ('ema/0/model/pos_embed', True),
        ('model/t_embedder/mlp_0/kernel', False),
        ('model/pos_embedder/kernel', False),
    ],
)
def test_embeddings_of_patches_and_places_stay_whole(name, whole):
  mesh = sharding.make_mesh(8)
  spec = sharding.param_spec(name, (256, 768), mesh)
  assert (spec == jax.sharding.PartitionSpec(None, None)) == whole
