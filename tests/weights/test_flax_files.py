"""Checkpoints of the official MeanFlow, written by flax itself."""

import pathlib

from flax import serialization
from flax.training import checkpoints
from flax.training import train_state
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from irepa_jax import errors
from irepa_jax.weights import convert
from irepa_jax.weights import files
from irepa_jax.weights import flax_files

STEPS = 7


class OfficialState(train_state.TrainState):
  """Their TrainState: averages beside the parameters."""

  ema_params: dict


def official_state():
  """Returns one with random moments, its weights those of an oracle."""
  flat = golden_files.subset(golden_files.load('meanflow_net'), 'sd')
  params = convert.unflatten({tuple(k.split('/')): v for k, v in flat.items()})
  state = OfficialState.create(
      apply_fn=None,
      params=params,
      tx=optax.adamw(1e-4, b2=0.95, weight_decay=0),
      ema_params=jax.tree.map(lambda x: x + 1, params),
  )
  grads = jax.tree.map(jnp.ones_like, params)
  for _ in range(STEPS):
    with jax.numpy_dtype_promotion('standard'):
      state = state.apply_gradients(grads=grads)
  return state.replace(params=params)


def write_orbax(folder, state):
  path = checkpoints.save_checkpoint(folder.absolute(), state, STEPS)
  assert pathlib.Path(path).is_dir()
  return path


def write_msgpack(folder, state):
  path = folder / f'checkpoint_{STEPS}'
  path.write_bytes(serialization.to_bytes(state))
  return path


@pytest.mark.parametrize('write', [write_orbax, write_msgpack])
def test_both_kinds_hold_weights_average_and_moments(write, tmp_path):
  state = official_state()
  path = write(tmp_path, state)
  found = files.read(files.fetch(path))
  assert found['steps'] == STEPS
  wanted = flax_files.state_dict(state.params)
  assert found['model'].keys() == wanted.keys() == found['ema'].keys()
  adam = flax_files.state_dict(state.opt_state[0].nu)
  for i, (name, value) in enumerate(found['model'].items()):
    np.testing.assert_array_equal(value, wanted[name])
    np.testing.assert_array_equal(found['ema'][name], value + np.float32(1))
    entry = found['opt']['state'][i]
    np.testing.assert_array_equal(entry['exp_avg_sq'], adam[name])
    assert entry['step'] == STEPS


def test_names_and_layout_are_those_of_pytorch():
  flat = golden_files.subset(golden_files.load('meanflow_net'), 'sd')
  found = flax_files.state_dict(flat)
  qkv = flat['net/blocks/layers_1/attn/qkv/_flax_linear/kernel']
  np.testing.assert_array_equal(found['blocks.1.attn.qkv.weight'], qkv.T)
  table = flat['net/y_embedder/embedding_table/_flax_embedding/embedding']
  np.testing.assert_array_equal(
      found['y_embedder.embedding_table.weight'], table
  )
  assert found['x_embedder.proj.weight'].shape == (48, 4, 2, 2)
  assert 'h_embedder.mlp.2.bias' in found


def test_large_arrays_in_pieces_are_joined(tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 100)
  state = official_state()
  found = files.read(write_msgpack(tmp_path, state))
  for name, value in flax_files.state_dict(state.params).items():
    np.testing.assert_array_equal(found['model'][name], value)


def test_what_is_damaged_or_something_else_is_refused(tmp_path):
  path = write_msgpack(tmp_path, official_state())
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(errors.DataError, match='checkpoint_7 is no checkpoint'):
    files.read(path)
  path.write_bytes(serialization.to_bytes({'params': {}}))
  with pytest.raises(errors.DataError, match='has params and ema_params'):
    files.read(path)
  (tmp_path / '_METADATA').write_text('{}')
  with pytest.raises(errors.DataError, match='no checkpoint of flax'):
    files.read(tmp_path)
