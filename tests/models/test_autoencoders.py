"""Autoencoders by name: moments, images, weight files and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.models import autoencoders
from irepa_jax.models import vae
from irepa_jax.weights import convert
from irepa_jax.weights import files

TINY = {'width': 32, 'multipliers': (1, 1), 'blocks': 1}


@pytest.fixture(scope='module')
def tiny():
  model = autoencoders.create('sd-vae-ft-mse', **TINY)
  return model, model.init(jax.random.key(0))


def images(*shape):
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    'name, factor, channels',
    [
        ('sd-vae-ft-mse', 8, 4),
        ('sd-vae-ft-ema', 8, 4),
        ('sd-vae-f8d4', 8, 4),
        ('vae-f16d32', 16, 32),
        ('haar', 2, 4),
        ('pixels', 1, 3),
    ],
)
def test_registry(name, factor, channels):
  model = models.autoencoder(name)
  assert (model.factor, model.channels) == (factor, channels)
  assert model.name == name
  for statistic in (model.bias, model.scale):
    assert statistic is None or len(statistic) == channels


def test_sd_statistics_are_the_published_ones():
  model = autoencoders.create('sd-vae-f8d4')
  assert model.bias == (0.0,) * 4
  assert model.scale == (0.18215,) * 4


def test_encode_reads_uint8_as_minus_one_to_one(tiny):
  model, params = tiny
  pixels = images(2, 16, 16, 3)
  moments = model.encode(params, pixels)
  x = pixels.astype(np.float32) / 127.5 - 1
  raw = model.module.apply({'params': params}, x, method='encode')
  mean, std = vae.posterior(raw)
  assert moments.dtype == jnp.float32
  np.testing.assert_allclose(moments[..., :4], mean, atol=1e-6)
  np.testing.assert_allclose(moments[..., 4:], std, atol=1e-6)


def test_decode_returns_images_within_range(tiny):
  model, params = tiny
  z = 50 * jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
  x = model.decode(params, z)
  assert x.shape == (2, 16, 16, 3)
  assert x.min() >= -1 and x.max() <= 1


def test_pixels_are_exact():
  model = autoencoders.create('pixels')
  params = model.load()
  pixels = images(2, 8, 8, 3)
  mean, std = jnp.split(model.encode(params, pixels), 2, axis=-1)
  np.testing.assert_array_equal(mean, pixels.astype(np.float32) / 127.5 - 1)
  assert not std.any() and not model.stored
  x = model.decode(params, mean)
  assert np.array_equal(np.rint((np.asarray(x) + 1) * 127.5), pixels)


def test_haar_reconstructs_grey_images():
  model = autoencoders.create('haar')
  params = model.load()
  pixels = np.repeat(images(3, 16, 16, 1), 3, axis=-1)
  moments = model.encode(params, pixels)
  assert moments.shape == (3, 8, 8, 8)
  x = model.decode(params, moments[..., :4])
  assert np.array_equal(np.rint((np.asarray(x) + 1) * 127.5), pixels)
  assert params == model.init(jax.random.key(0)) == {}


@pytest.mark.parametrize('suffix', ['safetensors', 'pt'])
def test_weights_are_read_from_a_file(tiny, tmp_path, suffix):
  model, params = tiny
  path = tmp_path / f'vae.{suffix}'
  tensors = convert.to_torch(model.module, params)
  if suffix == 'pt':
    foreign = {'loss.logvar': np.zeros((), np.float32)}
    files.write_torch(path, {'state_dict': tensors | foreign})
  else:
    files.write_safetensors(path, tensors)
  loaded = model.load(str(path))
  jax.tree.map(np.testing.assert_array_equal, loaded, dict(params))


def test_official_statistics_are_read(tmp_path):
  bias, scale = np.arange(4.0), np.arange(4.0) + 0.5
  path = tmp_path / 'x-latents-stats.pt'
  shape = (1, 4, 1, 1)
  entries = {'latents_bias': bias, 'latents_scale': scale}
  entries = {k: v.reshape(shape).astype('float32') for k, v in entries.items()}
  files.write_torch(path, entries)
  assert autoencoders.read_statistics(path) == (tuple(bias), tuple(scale))


def test_unknown_name_gets_the_nearest():
  with pytest.raises(errors.UsageError, match="mean 'sd-vae-ft-mse'"):
    autoencoders.create('sd-vae-ft-mae')


def test_haar_refuses_weights():
  with pytest.raises(errors.UsageError, match='haar has no weights'):
    autoencoders.create('haar').load('vae.safetensors')


@pytest.mark.parametrize(
    'pixels, line',
    [
        (np.zeros((1, 16, 16, 3), np.float32), 'must be uint8'),
        (np.zeros((1, 15, 16, 3), np.uint8), '15x16 pixels'),
    ],
)
def test_bad_images_get_one_line(pixels, line):
  model = autoencoders.create('haar')
  with pytest.raises(errors.DataError, match=line):
    model.encode({}, pixels)
