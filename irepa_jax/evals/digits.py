"""Judges generated digits: are they the digit asked for, and how real?

A small classifier, trained on half of the real digits and on nothing the
generator sees but those digits, gives the accuracy of class-conditional
samples; its hidden layer gives a Frechet distance to the real digits. The
distance of real digits after a round trip through the codec is the floor that
no generator behind that codec can beat.
"""

import functools
import warnings

import numpy as np

from irepa_jax.data import digits
from irepa_jax.evals import scores

SIDE = 8  # pixels of the original digits
WHITE = 16.0  # their largest value
HIDDEN = 64


@functools.cache
def judge():
  """Returns the classifier and the digits held out from its training.

  (network, images [n 64] in 0..1, labels [n]). Needs scikit-learn, which
  ships the digits.
  """
  from sklearn import datasets
  from sklearn import exceptions
  from sklearn import neural_network

  images, labels = datasets.load_digits(return_X_y=True)
  images = images / WHITE
  network = neural_network.MLPClassifier(
      (HIDDEN,),
      alpha=1e-2,
      learning_rate_init=5e-3,
      max_iter=100,
      random_state=0,
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    network.fit(images[::2], labels[::2])
  return network, images[1::2], labels[1::2]


def evaluate(images, labels):
  """Scores generated digits.

  images: uint8 [n 16 16 3]; labels: the classes asked for, [n]. Returns
  {'accuracy', 'frechet'} as floats.
  """
  network, real, _ = judge()
  pixels = shrink(images)
  return {
      'accuracy': float(np.mean(network.predict(pixels) == labels)),
      'frechet': frechet(features(real), features(pixels)),
  }


def floor(round_trip):
  """Returns the scores of the codec alone, on digits it is given.

  round_trip(images uint8 [n 16 16 3]) -> the same, encoded and decoded. Returns
  {'floor_accuracy', 'floor_frechet'}.
  """
  _, real, labels = judge()
  found = evaluate(round_trip(digits.to_images(_square(WHITE * real))), labels)
  return {f'floor_{name}': value for name, value in found.items()}


def shrink(images):
  """Turns images uint8 [n s s 3] into rows of 64 grey values in 0..1."""
  n, side = images.shape[:2]
  cell = side // SIDE
  grey = images.astype(np.float64).mean(-1) / 255
  cells = grey.reshape(n, SIDE, cell, SIDE, cell)
  return cells.mean((2, 4)).reshape(n, SIDE * SIDE)


def _square(rows):
  return rows.reshape(-1, SIDE, SIDE)


def features(rows):
  """Returns the hidden activations [n 64] of the judge."""
  network, _, _ = judge()
  hidden = rows @ network.coefs_[0] + network.intercepts_[0]
  return np.maximum(hidden, 0)


def frechet(real, fake):
  """Frechet distance between two sets of features [n d]."""
  moments = lambda f: (f.mean(0), np.cov(f, rowvar=False))
  return scores.fid(*moments(real), *moments(fake))
