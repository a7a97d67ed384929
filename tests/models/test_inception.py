"""The 2015 Inception against torch-fidelity's, and the files of its weights."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_inception

from irepa_jax import errors
from irepa_jax.models import inception
from irepa_jax.models import inception_weights
from irepa_jax.weights import convert
from irepa_jax.weights import files

# Two float32 implementations, 94 convolutions deep; measured 2e-6 or less.
TOLERANCE = 1e-5  # of the largest value of an output


@pytest.fixture(scope='module')
def golden():
  return golden_files.load('inception')


@pytest.fixture(scope='module')
def state_dict(golden):
  return random_inception.state_dict(golden['meta']['shapes'])


@pytest.fixture(scope='module')
def features(state_dict):
  """Features of the random images, of four sizes, under random weights."""
  params = inception_weights.from_torch(state_dict)
  images = [
      inception.resize_tf1(image, inception.SIDE)
      for image in random_inception.images()
  ]
  apply = jax.jit(lambda p, x: inception.Inception().apply({'params': p}, x))
  return apply(params, jnp.concatenate(images))


@pytest.mark.parametrize('output', inception.Features._fields)
def test_features_equal_torch_fidelity(golden, features, output):
  expected = golden[output]
  error = np.abs(np.asarray(getattr(features, output)) - expected).max()
  assert error <= TOLERANCE * np.abs(expected).max()


def test_widths_are_those_of_the_published_statistics():
  module = inception.Inception()
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
  shapes = jax.eval_shape(
      lambda p, x: module.apply({'params': p}, x),
      convert.param_shapes(module),
      images,
  )
  assert [x.shape for x in shapes] == [(2, n) for n in (2048, 2023, 1008, 1008)]


def test_resize_keeps_an_image_of_its_own_size():
  image = random_inception.images()[2]
  assert np.array_equal(inception.resize_tf1(image, 299), image)


def test_resize_shares_the_first_corner():
  ramp = np.arange(4, dtype=np.uint8)[None, None, :, None] * 10
  resized = inception.resize_tf1(np.repeat(ramp, 2, axis=1), 8)[0, 0, :, 0]
  # Half-pixel centres would start 0, 2.5, 7.5; the last pixel is repeated.
  np.testing.assert_allclose(resized, [0, 5, 10, 15, 20, 25, 30, 30])


def test_torch_round_trip_is_bit_exact(state_dict):
  params = inception_weights.from_torch(state_dict)
  back = convert.to_torch(inception.Inception(), params)
  assert back.keys() == state_dict.keys()
  assert all(np.array_equal(back[key], state_dict[key]) for key in back)


# Chains of the TensorFlow graph, from its list of operations.
A = {
    'conv': 'branch1x1',
    'tower/conv': 'branch5x5_1',
    'tower/conv_1': 'branch5x5_2',
    'tower_1/conv': 'branch3x3dbl_1',
    'tower_1/conv_1': 'branch3x3dbl_2',
    'tower_1/conv_2': 'branch3x3dbl_3',
    'tower_2/conv': 'branch_pool',
}
B = {
    'conv': 'branch3x3',
    'tower/conv': 'branch3x3dbl_1',
    'tower/conv_1': 'branch3x3dbl_2',
    'tower/conv_2': 'branch3x3dbl_3',
}
C = {
    'conv': 'branch1x1',
    'tower/conv': 'branch7x7_1',
    'tower/conv_1': 'branch7x7_2',
    'tower/conv_2': 'branch7x7_3',
    'tower_1/conv': 'branch7x7dbl_1',
    'tower_1/conv_1': 'branch7x7dbl_2',
    'tower_1/conv_2': 'branch7x7dbl_3',
    'tower_1/conv_3': 'branch7x7dbl_4',
    'tower_1/conv_4': 'branch7x7dbl_5',
    'tower_2/conv': 'branch_pool',
}
D = {
    'tower/conv': 'branch3x3_1',
    'tower/conv_1': 'branch3x3_2',
    'tower_1/conv': 'branch7x7x3_1',
    'tower_1/conv_1': 'branch7x7x3_2',
    'tower_1/conv_2': 'branch7x7x3_3',
    'tower_1/conv_3': 'branch7x7x3_4',
}
E = {
    'conv': 'branch1x1',
    'tower/conv': 'branch3x3_1',
    'tower/mixed/conv': 'branch3x3_2a',
    'tower/mixed/conv_1': 'branch3x3_2b',
    'tower_1/conv': 'branch3x3dbl_1',
    'tower_1/conv_1': 'branch3x3dbl_2',
    'tower_1/mixed/conv': 'branch3x3dbl_3a',
    'tower_1/mixed/conv_1': 'branch3x3dbl_3b',
    'tower_2/conv': 'branch_pool',
}
GRAPH = {
    'mixed': ('Mixed_5b', A),
    'mixed_1': ('Mixed_5c', A),
    'mixed_2': ('Mixed_5d', A),
    'mixed_3': ('Mixed_6a', B),
    'mixed_4': ('Mixed_6b', C),
    'mixed_5': ('Mixed_6c', C),
    'mixed_6': ('Mixed_6d', C),
    'mixed_7': ('Mixed_6e', C),
    'mixed_8': ('Mixed_7a', D),
    'mixed_9': ('Mixed_7b', E),
    'mixed_10': ('Mixed_7c', E),
}
STEM = {
    'conv': 'Conv2d_1a_3x3',
    'conv_1': 'Conv2d_2a_3x3',
    'conv_2': 'Conv2d_2b_3x3',
    'conv_3': 'Conv2d_3b_1x1',
    'conv_4': 'Conv2d_4a_3x3',
}
NODES = STEM | {
    f'{mixed}/{node}': f'{block}.{unit}'
    for mixed, (block, units) in GRAPH.items()
    for node, unit in units.items()
}


def test_graph_names_are_those_of_the_2015_graph():
  assert inception_weights.graph_names() == NODES
  assert len(NODES) == 94


def as_graph(state_dict):
  """The constants of the TensorFlow graph that hold a state dict."""
  leaf = lambda name, key: state_dict[f'{name}.{key}']
  constants = {'softmax/weights': leaf('fc', 'weight').T}
  constants['softmax/biases'] = leaf('fc', 'bias')
  for node, name in NODES.items():
    kernel = np.moveaxis(leaf(name, 'conv.weight'), (0, 1), (3, 2))
    constants[f'{node}/conv2d_params'] = kernel
    constants[f'{node}/batchnorm/gamma'] = leaf(name, 'bn.weight')
    constants[f'{node}/batchnorm/beta'] = leaf(name, 'bn.bias')
    constants[f'{node}/batchnorm/moving_mean'] = leaf(name, 'bn.running_mean')
    variance = leaf(name, 'bn.running_var')
    constants[f'{node}/batchnorm/moving_variance'] = variance
  return constants


def test_graph_holds_the_same_weights(state_dict):
  constants = as_graph(state_dict) | {'Sub/y': np.float32(128)}
  back = inception_weights.from_graph(constants)
  assert back.keys() == state_dict.keys()
  assert all(np.array_equal(back[key], state_dict[key]) for key in back)


def test_a_graph_of_another_network_is_refused(state_dict):
  constants = as_graph(state_dict)
  del constants['mixed_8/tower/conv/conv2d_params']
  with pytest.raises(errors.DataError, match='1 of its 472 .*mixed_8/tower/'):
    inception_weights.from_graph(constants)


@pytest.mark.parametrize('damage', ['missing', 'extra', 'misshapen'])
def test_a_damaged_state_dict_is_refused_by_name(state_dict, damage):
  state_dict = dict(state_dict)
  name = 'Mixed_6d.branch1x1.conv.weight'
  if damage == 'missing':
    del state_dict[name]
  elif damage == 'extra':
    name = 'AuxLogits.fc.weight'
    state_dict[name] = np.zeros((1000, 768), np.float32)
  else:
    state_dict[name] = state_dict[name][:, :100]
  with pytest.raises(errors.DataError, match=name):
    inception_weights.from_torch(state_dict)


@pytest.fixture(scope='module')
def weight_file(state_dict, tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'inception.safetensors'
  counters = {
      key.replace('running_var', 'num_batches_tracked'): np.zeros((), np.int64)
      for key in state_dict
      if key.endswith('running_var')
  }
  files.write_safetensors(path, state_dict | counters)
  return path


def test_load_reads_a_file(state_dict, weight_file):
  loaded = inception_weights.load(str(weight_file))
  expected = inception_weights.from_torch(state_dict)
  jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_the_published_file_is_downloaded_once(monkeypatch, tmp_path):
  source = tmp_path / 'source' / 'inception.pth'
  source.parent.mkdir()
  source.write_bytes(b'weights')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(inception_weights, 'PUBLISHED', source.as_uri())
  path = inception_weights.fetch()
  source.unlink()
  assert inception_weights.fetch() == path
  assert path.read_bytes() == b'weights'


def test_no_network_gets_one_line(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  absent = (tmp_path / 'absent.pth').as_uri()
  monkeypatch.setattr(inception_weights, 'PUBLISHED', absent)
  with pytest.raises(errors.DataError, match='cannot download .*absent.pth'):
    inception_weights.fetch()
