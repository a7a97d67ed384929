"""Encoders, saved tokens and blocks of a model as sources of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.analysis import inputs
from irepa_jax.analysis import representations
from irepa_jax.diffusion import paths
from irepa_jax.distributed import sharding
from irepa_jax.weights import files


def batch(index, size=16, label=-1):
  count = len(index)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (20, size, size, 3), np.uint8)
  return inputs.Batch(
      np.asarray(index), count, images[np.asarray(index)],
      np.full(count, label, np.int32), None, None,
  )  # fmt: skip


def test_encoder_is_spread_over_the_devices_and_equals_itself():
  name, load = representations.encoder('hog-vit-g4_d128', 16, sharding.make_mesh())
  tokens = load().encode(batch(range(8)))
  from irepa_jax import encoders

  want = encoders.create(name, resolution=16).encode({}, batch(range(8)).image)
  assert len(tokens.sharding.device_set) == 8
  np.testing.assert_allclose(tokens, want, atol=1e-5)


def test_unknown_encoder_is_refused_before_anything_is_loaded():
  with pytest.raises(errors.UsageError, match='dinov9'):
    representations.encoder('dinov9-vit-b', 256, sharding.make_mesh())


def test_an_encoder_with_a_single_token_is_refused():
  with pytest.raises(errors.UsageError, match='a single token .* 16 pixels'):
    representations.encoder('dinov2-vit-s@random', 16, sharding.make_mesh())


@pytest.mark.parametrize('suffix', ['.npy', '.pt'])
def test_saved_tokens_are_rows_of_a_file(tmp_path, suffix):
  tokens = np.random.default_rng(0).standard_normal((5, 9, 4)).astype(np.float32)
  path = tmp_path / f'mine{suffix}'
  if suffix == '.npy':
    np.save(path, tokens)
  else:
    files.write_torch(path, tokens)
  name, load, count = representations.saved_tokens(path)
  representation = load()
  assert (name, count, representation.grid) == ('mine', 5, (3, 3))
  np.testing.assert_array_equal(representation.encode(batch([3, 1])), tokens[[3, 1]])


def test_bad_token_files_are_refused(tmp_path):
  path = tmp_path / 'tokens.npy'
  cases = {
      '60 tokens form no square grid': np.zeros((2, 60, 4), np.float32),
      'floating-point': np.zeros((2, 9, 4), np.int32),
      r'\(2, 9\)': np.zeros((2, 9), np.float32),
  }
  for message, array in cases.items():
    np.save(path, array)
    with pytest.raises((errors.DataError, errors.UsageError), match=message):
      representations.saved_tokens(path)
  np.save(path, np.zeros((2, 60, 4), np.float32))
  assert representations.saved_tokens(path, (6, 10))[1]().grid == (6, 10)
  with pytest.raises(errors.UsageError, match='60 tokens .* 5 x 10'):
    representations.saved_tokens(path, (5, 10))
  path.write_bytes(b'damaged')
  with pytest.raises(errors.DataError, match='cannot be read'):
    representations.saved_tokens(path)
  with pytest.raises(errors.DataError, match='not found'):
    representations.saved_tokens(tmp_path / 'none.npy')
  path.rename(tmp_path / 'tokens.csv')
  with pytest.raises(errors.UsageError, match='.npy file'):
    representations.saved_tokens(tmp_path / 'tokens.csv')


@pytest.fixture(scope='module')
def small():
  model = models.create('SiT-T/2', size=4, channels=3, num_classes=5, depth=2, align_depth=1)
  shapes = model.example_inputs()
  zeros = [np.zeros(s.shape, s.dtype) for s in shapes]
  params = model.init(jax.random.key(0), *zeros)['params']
  return model, jax.tree.map(lambda p: p + 0.01, params)


def hidden(small, t, index, label=-1):
  model, params = small
  clean = lambda b: np.float32(b.image[:, :4, :4]) / 128 - 1
  found = representations.hidden('x', model, params, clean, t=t)
  return found.encode(batch(index, label=label))


def test_hidden_tokens_are_those_of_the_block(small):
  model, params = small
  b = batch([4, 7], label=2)
  x = np.float32(b.image[:, :4, :4]) / 128 - 1
  key = jax.random.key(0)
  noise = jnp.stack([
      jax.random.normal(jax.random.fold_in(key, i), (4, 4, 3)) for i in b.index
  ])
  noisy = paths.interpolate(jnp.asarray(x), noise, jnp.float32(0.25))
  time = np.full(2, 0.25, np.float32)
  _, want = model.apply({'params': params}, noisy, time, b.label)
  got = hidden(small, 0.25, [4, 7], label=2)
  assert got.shape == (2, 4, 64)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_image_has_the_same_noise_in_any_batch(small):
  together, alone = hidden(small, 0.9, [1, 5]), hidden(small, 0.9, [5])
  np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_images_without_label_get_the_null_label(small):
  null = small[0].num_classes
  np.testing.assert_array_equal(hidden(small, 0.5, [1]), hidden(small, 0.5, [1], null))
