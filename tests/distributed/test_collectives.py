"""What of a compiled program leaves a group of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.distributed import collectives
from irepa_jax.distributed import sharding

GROUPS = [0, 0, 0, 0, 1, 1, 1, 1]
LINE = '  %a = {} {}(%b), channel_id=1, {}, use_global_device_ids=true'


@pytest.mark.parametrize(
    'devices, leaves',
    [
        ('replica_groups={{0,1,2,3},{4,5,6,7}}', False),
        ('replica_groups={{0,4},{1,5},{2,6},{3,7}}', True),
        ('replica_groups={}', True),
        ('replica_groups=[2,4]<=[8]', False),
        ('replica_groups=[4,2]<=[8]', False),
        ('replica_groups=[4,2]<=[2,4]T(1,0)', True),
        ('replica_groups=[1,8]<=[8]', True),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", False),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", True),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", True),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", False),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", True),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,4,1,5) {'b'}", True),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,4,1,5) {'a'}", False),
        (
            "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0))"
            " {'a'}",
            False,
        ),
    ],
)
def test_devices_of_a_collective(devices, leaves):
  line = LINE.format('f32[256,256]{1,0}', 'all-reduce', devices)
  found = collectives.crossing(line, GROUPS)
  assert found == (
      {'all-reduce f32': {'count': 1, 'mib': 0.25}} if leaves else {}
  )


def test_pairs_tuples_and_transfers_between_hosts():
  text = '\n'.join([
      LINE.format(
          'bf16[1024,512]{1,0}', 'collective-permute',
          'source_target_pairs={{0,1},{3,4}}',
      ),
      LINE.format(
          '(pred[8]{0}, f32[2,131072]{1,0})', 'all-gather-start',
          'replica_groups={{0,7}}',
      ),
      '  %s = (f32[4,65536]{1,0:T(8,128)}, u32[], token[]) send(%x, %y),'
      ' frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
      '  %r = (f32[4,65536]{1,0}, u32[], token[]) recv(%y), channel_id=7',
      '  %n = f32[4]{0} add(%x, %y)',
  ])  # fmt: skip
  assert collectives.crossing(text, GROUPS) == {
      'all-gather f32': {'count': 1, 'mib': 1.0},
      'all-reduce f32': {'count': 1, 'mib': 1.0},
      'collective-permute bf16': {'count': 1, 'mib': 1.0},
  }


@pytest.mark.parametrize('replica, kinds', [(2, {'all-reduce'}), (1, None)])
def test_only_gradients_leave_a_group(monkeypatch, replica, kinds):
  monkeypatch.setattr(sharding, 'group', lambda device: device.id // 4)
  mesh = sharding.make_mesh(replica=replica)
  weights = {'kernel': np.zeros((256, 256), np.float32)}
  split = sharding.tree_shardings(weights, mesh)

  def step(weights, x):
    loss = lambda w: jnp.mean((x @ sharding.gather(mesh)(w)['kernel']) ** 2)
    return jax.tree.map(lambda w, g: w - g, weights, jax.grad(loss)(weights))

  rows = jax.ShapeDtypeStruct(
      (4096, 256), jnp.float32, sharding=sharding.batch_sharding(mesh)
  )
  program = jax.jit(step, out_shardings=split)
  text = program.lower(sharding.placed(weights, split), rows).compile()
  groups = [sharding.group(device) for device in mesh.devices.flat]
  found = collectives.crossing(text.as_text(), groups)
  if kinds:
    assert {name.split()[0] for name in found} == kinds
  else:
    assert found['all-gather f32']['mib'] == 0.25
