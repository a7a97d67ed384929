"""The parts of SAM 2's mask logits; test_segment_anything.py has the whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.encoders import pixels
from irepa_jax.encoders import sam2_masks


def test_points_are_scaled_twice_as_released():
  module = encoders.create('sam2logit-vit-s4', resolution=256).module
  places = np.asarray(module.places()) * sam2_masks.SIDE - 0.5
  np.testing.assert_allclose(places[:2], [[0, 0], [1364, 0]], atol=1e-3)
  sane = module.clone(official_point_scaling=False)
  places = np.asarray(sane.places()) * sam2_masks.SIDE - 0.5
  np.testing.assert_allclose(places[-1], [1023, 1023], atol=1e-3)


@pytest.mark.parametrize('inner, stable', [(0.5, True), (0.01, False)])
def test_an_unstable_mask_gives_way_to_the_best(inner, stable):
  masks = jnp.stack([jnp.full((1, 4, 4), v) for v in (inner, 2.0, 3.0, 4.0)], 1)
  scores = jnp.asarray([[9.0, 0.1, 0.9, 0.2]])
  found = sam2_masks.steady(masks, scores)
  np.testing.assert_allclose(found, inner if stable else 3.0)


def test_images_are_resized_in_whole_numbers(golden):
  torch = pytest.importorskip('torch')
  photo = golden('photos_uint8')['photos'][:1]
  wanted = torch.nn.functional.interpolate(
      torch.tensor(photo), 1024, mode='bilinear', antialias=True
  )
  raw = pixels.Pixels('bilinear_aa', pixels.RAW, scale=1.0, whole=True)
  found = pixels.prepare(photo.transpose(0, 2, 3, 1), 1024, raw)
  np.testing.assert_array_equal(found, wanted.numpy().transpose(0, 2, 3, 1))


def test_config_that_cannot_work():
  with pytest.raises(errors.UsageError, match="'x16' is not s, b or l"):
    encoders.create('sam2logit-vit-x16')
