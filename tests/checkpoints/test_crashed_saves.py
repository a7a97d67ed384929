"""Whatever moment a crash picks, the newest whole step comes back.

The states are those of a real save that strace has recorded: see
tests/crash_states.py. A power cut can also lose what was written but not
flushed; the digests find that out, as they find any other damage.
"""

import shutil

import crash_states
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.checkpoints import manager


def saved(step):
  """Returns what the recorded program saves as a step."""
  state = {
      'kernel': jnp.arange(64.0).reshape(8, 8),
      'ema': ({'bias': jnp.ones(3, jnp.bfloat16)},),
      'step': jnp.int32(0),
  }
  return jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state)


def opened(files, folder):
  """Returns the step that a run would go on with, checked bit for bit."""
  crash_states.write(files, folder)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved(0)
  )
  state, meta = manager.Checkpoints(folder).restore(abstract)
  for x, y in zip(
      jax.tree.leaves(state), jax.tree.leaves(saved(meta['position'])),
      strict=True,
  ):  # fmt: skip
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
  return meta['position']


def check(before, changes, folder):
  """Opens every state; returns the steps in the order of the crashes."""
  states = list(crash_states.states(before, changes))
  found = [opened(files, folder) for files in states]
  print(len(changes), 'changes,', len(states), 'states; step 2 from', found.index(2))
  assert found == sorted(found) and set(found) == {1, 2}
  return states[-1]


def test_every_state_of_a_recorded_save(tmp_path):
  before, changes = crash_states.load('save.json.gz')
  assert len(changes) > 80
  check(before, changes, tmp_path / 'checkpoints')


@pytest.mark.skipif(not shutil.which('strace'), reason='needs strace')
def test_every_state_of_a_save_of_these_versions(tmp_path):
  folder = tmp_path / 'checkpoints'
  before, changes = crash_states.recorded_save(folder)
  after = crash_states.read(folder)
  last = check(before, changes, tmp_path / 'again')
  assert last == after
