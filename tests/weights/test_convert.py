"""Conversion by name: bit exact both ways, and exact about every key."""

import flax.linen as nn
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.models import projector as projectors
from irepa_jax.weights import convert

ORACLE = golden_files.load('sit_forward')
FIELDS = dict(width=48, depth=3, heads=3, num_classes=10, size=8)


def model(**overrides):
  return models.create('SiT-S/2', **(FIELDS | overrides))


def projector(kind):
  return projectors.Projectors(kind, 48, (40,), grid=(4, 4), hidden=64)


def official(case):
  """Returns the official state dict of the model and one projector."""
  return golden_files.subset(ORACLE, 'sd') | golden_files.subset(
      ORACLE, f'case/{case}/sd'
  )


class Odd(nn.Module):
  """A module of which one name does not follow the rule."""

  TORCH_NAMES = ((r'^token$', 'cls_token'), (r'norm_(\w)\.', r'norm.\1.'))

  @nn.compact
  def __call__(self, x):
    token = self.param('token', nn.initializers.ones, (1, 4))
    return nn.Dense(3, name='head_2')(nn.LayerNorm(name='norm_q')(x + token))

  def example_inputs(self):
    return (jax.ShapeDtypeStruct((1, 4), jnp.float32),)


@pytest.mark.parametrize('case', ['conv3', 'mlp', 'linear'])
def test_round_trip_is_bit_exact(case):
  parts = model(), projector(case.rstrip('3'))
  entries = official(case)
  params = convert.from_official(*parts, entries)
  back = convert.to_official(*parts, params)
  assert back.keys() == entries.keys()
  for name, array in entries.items():
    np.testing.assert_array_equal(back[name], array)
  assert all(a.dtype == np.float32 for a in jax.tree.leaves(params))


def test_names_follow_one_rule_and_a_list():
  assert convert.torch_shapes(Odd()) == {
      'cls_token': (1, 4),
      'norm.q.weight': (4,),
      'norm.q.bias': (4,),
      'head.2.weight': (3, 4),
      'head.2.bias': (3,),
  }


def test_every_layout_turns_into_ours_and_back():
  arrays = {
      'cls_token': np.float32([[1, 2, 3, 4]]),
      'norm.q.weight': np.ones(4, np.float16),
      'norm.q.bias': np.ones(4, np.float64),
      'head.2.weight': np.arange(12, dtype=np.float32).reshape(3, 4),
      'head.2.bias': np.ones(3, np.int64),
  }
  params = convert.from_torch(Odd(), arrays)
  np.testing.assert_array_equal(
      params['head_2']['kernel'], arrays['head.2.weight'].T
  )
  back = convert.to_torch(Odd(), jax.tree.map(jnp.asarray, params))
  for name, array in back.items():
    assert array.dtype == np.float32 and array.flags.c_contiguous
    np.testing.assert_array_equal(array, arrays[name])


def test_older_projector_names_are_known():
  entries = official('mlp')
  older = {k.replace('.projection_layer', ''): v for k, v in entries.items()}
  assert 'projectors.0.4.bias' in older
  parts = model(), projector('mlp')
  found = convert.from_official(*parts, older)
  wanted = convert.from_official(*parts, entries)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_names_of_parallel_training_are_known():
  entries = {f'module.{k}': v for k, v in official('conv3').items()}
  convert.from_official(model(), projector('conv'), entries)


@pytest.mark.parametrize('case, wanted', [('conv3', None), (None, 'conv')])
def test_projector_is_left_out_where_none_is_wanted_or_there(case, wanted):
  heads = projector(wanted) if wanted else None
  params = convert.from_official(model(), heads, official(case))
  assert params['projector'] == {}
  entries = convert.to_official(model(), heads, params)
  assert entries.keys() == official(None).keys()


def test_sit_release_with_twice_the_channels_loads():
  entries = official(None)
  for name in ('weight', 'bias'):
    key = f'final_layer.linear.{name}'
    entries[key] = np.concatenate([entries[key]] * 2)
  double = model(out_channels=8)
  params = convert.from_official(double, None, entries)
  back = convert.to_official(double, None, params)
  jax.tree.map(np.testing.assert_array_equal, back, entries)


def test_missing_and_unknown_keys_are_named():
  entries = official(None)
  del entries['blocks.1.mlp.fc2.bias']
  entries['blocks.1.mlp.fc3.bias'] = np.zeros(48)
  with pytest.raises(errors.DataError) as caught:
    convert.from_torch(model(), entries)
  assert str(caught.value) == (
      'weights do not fit: 1 missing (blocks.1.mlp.fc2.bias);'
      ' 1 unknown (blocks.1.mlp.fc3.bias)'
  )


def test_another_shape_is_named():
  entries = official(None)
  entries['pos_embed'] = entries['pos_embed'][:, :9]
  with pytest.raises(errors.DataError) as caught:
    convert.from_torch(model(), entries)
  assert str(caught.value) == (
      'weights do not fit: 1 of another shape'
      ' (pos_embed (1, 9, 48) instead of (1, 16, 48))'
  )


def test_another_model_is_told_by_its_size_and_three_keys():
  with pytest.raises(errors.DataError) as caught:
    convert.from_torch(model(width=96, depth=5, heads=2), official(None))
  text = str(caught.value)
  assert text.endswith(
      'file has 3 blocks, 48 wide, the model 5 blocks, 96 wide'
  )
  assert '20 missing (' in text and text.count('blocks.3.') == 3
  assert '\n' not in text


def test_keys_dropped_on_purpose_are_listed_as_patterns():
  entries = official(None) | {'ema.decay': np.ones(1), 'loss': np.ones(1)}
  convert.from_torch(model(), entries, drop=('ema', 'loss'))
  with pytest.raises(errors.DataError, match=r'1 unknown \(loss\)'):
    convert.from_torch(model(), entries, drop=('ema',))
