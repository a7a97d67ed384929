"""The judge of generated digits."""

import numpy as np

from irepa_jax.data import digits as data
from irepa_jax.evals import digits


def real(half):
  from sklearn import datasets

  images, labels = datasets.load_digits(return_X_y=True)
  return data.to_images(images[half::2].reshape(-1, 8, 8)), labels[half::2]


def test_real_digits_are_recognised_and_close_to_themselves():
  images, labels = real(half=1)
  found = digits.evaluate(images, labels)
  assert found['accuracy'] > 0.95
  assert found['frechet'] < 0.01  # rounding to grey levels alone


def test_noise_and_wrong_labels_are_told_apart():
  images, labels = real(half=1)
  noise = (
      np.random.default_rng(0).integers(256, size=images.shape).astype(np.uint8)
  )
  assert digits.evaluate(noise, labels)['accuracy'] < 0.3
  assert digits.evaluate(noise, labels)['frechet'] > 5
  wrong = digits.evaluate(images, (labels + 1) % 10)
  assert wrong['accuracy'] < 0.05 and wrong['frechet'] < 0.01


def test_the_floor_is_that_of_the_codec():
  blurred = lambda x: np.broadcast_to(
      x.mean((1, 2), keepdims=True), x.shape
  ).astype(np.uint8)
  exact = digits.floor(lambda x: x)
  lossy = digits.floor(blurred)
  assert exact['floor_frechet'] < 0.01 < lossy['floor_frechet']
  assert exact['floor_accuracy'] > 0.9 > lossy['floor_accuracy']
