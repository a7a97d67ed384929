"""Names, resolutions, sizes and users' own encoders."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.encoders import pixels
from irepa_jax.encoders import vit
from irepa_jax.encoders import zoo
from irepa_jax.weights import convert

# A user's encoders, found as 'test_zoo:NAME'.
SMALL_VIT = encoders.Spec(
    'small', vit.ViT(32, 1, 2, patch=8), pixels.Pixels(), layouts=('official',)
)
NOT_AN_ENCODER = 3


def mean_colour(images):
  """Means of 32 x 32 pixels: images [b h w 3] -> tokens [b n 3]."""
  b, h, w, _ = images.shape
  x = images.reshape(b, h // 32, 32, w // 32, 32, 3).mean((2, 4))
  return x.reshape(b, -1, 3)


def one_vector(images):
  return images.mean((1, 2))


@pytest.mark.parametrize('name', encoders.names())
def test_full_size(name):
  spec = zoo.find(name)
  if spec.layouts:
    count = encoders.parameters(name) / 1e6
    # The specification rounds to 0.1 or to four digits.
    assert count == pytest.approx(spec.megaparams, abs=0.06, rel=3e-4)
  params = convert.param_shapes(spec.module)
  for resolution in spec.resolutions or (256, 512):
    encoder = encoders.create(name, resolution=resolution, **quick(spec))
    images = jax.ShapeDtypeStruct((2, resolution, resolution, 3), jnp.uint8)
    if hasattr(spec.module, 'table_prefix') and 'pos_embed' in params:
      count = encoder.module.table_prefix + math.prod(encoder.grid)
      rows = (1, count, encoder.width)
      params['pos_embed'] = jax.ShapeDtypeStruct(rows, jnp.float32)
    tokens = jax.eval_shape(encoder.encode, params, images)
    assert tokens.shape == (2, math.prod(encoder.grid), encoder.width)
    if name.split('-')[0] != 'hog':
      assert encoder.grid == (resolution // 16,) * 2


def quick(spec):
  """Tracing one layer is faster than tracing all."""
  fields = spec.module.__dataclass_fields__
  return {'scan_layers': True} if 'scan_layers' in fields else {}


@pytest.mark.parametrize(
    'name, near',
    [
        ('dinov2-vitb', 'dinov2-vit-b'),
        ('dinov2-vit-x', 'dinov2-vit-'),
        ('dinov2-reg-vit-l', 'dinov2reg-vit-l'),
        ('hog', 'hog-vit-'),
    ],
)
def test_unknown_name_is_told_the_nearest(name, near):
  with pytest.raises(errors.UsageError, match=f'did you mean \'{near}'):
    encoders.create(name)


def test_unknown_field_is_told_the_known():
  with pytest.raises(errors.UsageError, match="'deep'; it has .*depth"):
    encoders.create('dinov2-vit-b', deep=3)


def test_resolution_must_fit_the_grid():
  with pytest.raises(errors.UsageError, match='100 is not a multiple of 16'):
    encoders.create('dinov2-vit-b', resolution=100)


def test_several_names_with_commas():
  pair = encoders.parse('dinov2-vit-b, hog-vit-g16_d128', resolution=256)
  assert [e.width for e in pair] == [768, 128]
  assert encoders.parse('') == ()


def test_own_function():
  encoder = encoders.create('test_zoo:mean_colour', resolution=64)
  assert encoder.grid == (2, 2) and encoder.width == 3
  images = np.full((1, 64, 64, 3), 7, np.uint8)
  tokens = jax.jit(encoder.encode)(encoder.load(), images)
  np.testing.assert_array_equal(tokens, np.full((1, 4, 3), 7, np.float32))


def test_own_row():
  encoder = encoders.create('test_zoo:SMALL_VIT', resolution=32, depth=2)
  params = encoder.init(jax.random.key(0))
  tokens = encoder.encode(params, np.zeros((1, 32, 32, 3), np.uint8))
  assert tokens.shape == (1, 4, 32)
  state_dict = convert.to_torch(encoder.module, params)
  again = encoder.from_torch(state_dict)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    'name, word',
    [
        ('test_zoo:missing', 'missing'),
        ('no_such_module:x', 'no_such_module'),
        ('test_zoo:NOT_AN_ENCODER', 'is int'),
        ('test_zoo:one_vector', r'to \(1, 3\)'),
    ],
)
def test_own_that_cannot_work(name, word):
  with pytest.raises(errors.UsageError, match=word):
    encoders.create(name, resolution=64)
