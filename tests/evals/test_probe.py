"""Linear probes against scikit-learn, and features without padding."""

import functools

import numpy as np
import pytest
from sklearn import linear_model

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.evals import probe


@functools.cache
def features(classes=3, n=240, width=7, seed=0):
  """Overlapping clouds of unequal scale, far from zero in one channel."""
  rng = np.random.default_rng(seed)
  label = rng.integers(classes, size=n)
  centres = np.random.default_rng(9).standard_normal((classes, width))
  x = centres[label] + 1.6 * rng.standard_normal((n, width))
  x = x * np.geomspace(0.01, 10, width) + np.eye(width)[0] * 5
  return probe.Features(x.astype(np.float32), label.astype(np.int32))


def standard():
  return probe.standardise(features(), features(seed=1))


def scores(linear, x):
  return x @ linear.weight + linear.bias


@pytest.mark.parametrize('alpha', [1e-3, 1.0, 300.0])
def test_ridge_equals_scikit_learn(alpha, monkeypatch):
  monkeypatch.setattr(probe, 'ROWS', 50)
  train, test = standard()
  ours = scores(probe.ridge(train, 3, alpha=alpha), test.x)
  theirs = linear_model.RidgeClassifier(alpha=alpha)
  theirs.fit(train.x.astype(np.float64), train.label)
  np.testing.assert_allclose(ours, theirs.decision_function(test.x), atol=1e-6)
  accuracy = probe.accuracy(probe.ridge(train, 3, alpha=alpha), test)
  assert accuracy == theirs.score(test.x, test.label)


def test_ridge_of_two_classes_decides_as_scikit_learn():
  train, test = probe.standardise(features(2), features(2, seed=1))
  theirs = linear_model.RidgeClassifier().fit(train.x, train.label)
  best = scores(probe.ridge(train, 2), test.x).argmax(1)
  np.testing.assert_array_equal(best, theirs.predict(test.x))


@pytest.mark.parametrize(
    'settings',
    [
        dict(optimiser='adam', learning_rate=0.1, batch_size=1000),
        dict(optimiser='sgd', learning_rate=0.3, batch_size=1000),
    ],
)
def test_softmax_reaches_the_loss_of_scikit_learn(settings):
  decay = 1e-2
  train, test = standard()
  found = probe.softmax(train, 3, decay=decay, epochs=400, **settings)
  theirs = linear_model.LogisticRegression(
      C=1 / (decay * len(train.x)), tol=1e-9, max_iter=1000
  ).fit(train.x.astype(np.float64), train.label)
  best = probe.Linear(
      theirs.coef_.T.astype(np.float32), theirs.intercept_.astype(np.float32)
  )
  optimum = float(probe.loss(best, *train, decay))
  assert 0.2 < optimum < 1
  reached = float(probe.loss(found, *train, decay))
  np.testing.assert_allclose(reached, optimum, rtol=1e-5)
  ours, theirs = scores(found, test.x), theirs.decision_function(test.x)
  centred = lambda s: s - s.mean(1, keepdims=True)  # the bias is free in common
  np.testing.assert_allclose(centred(ours), centred(theirs), atol=5e-3)


def test_small_batches_come_close_to_the_optimum():
  train, _ = standard()
  full = probe.softmax(train, 3, learning_rate=0.1, epochs=300, decay=1e-2)
  small = probe.softmax(
      train, 3, learning_rate=0.02, epochs=60, decay=1e-2, batch_size=32
  )
  wanted, reached = (float(probe.loss(p, *train, 1e-2)) for p in (full, small))
  assert wanted < reached < 1.02 * wanted


def test_a_rate_that_diverges_is_told():
  train, _ = standard()
  with pytest.raises(errors.DataError, match='learning_rate=1e'):
    probe.softmax(train, 3, optimiser='sgd', learning_rate=1e30, decay=1.0)


def test_accuracies_are_the_share_among_the_best():
  linear = probe.Linear(np.eye(12, dtype=np.float32), np.zeros(12, np.float32))
  x = np.arange(12, dtype=np.float32)[None].repeat(4, 0)
  data = probe.Features(x, np.int32([11, 7, 6, 0]))
  assert probe.accuracy(linear, data) == 0.25
  assert probe.accuracy(linear, data, 5) == 0.5


def test_scale_and_shift_of_channels_do_not_matter():
  train, test = features(), features(seed=1)
  moved = [f._replace(x=f.x * np.float32(64) - 3) for f in (train, test)]
  fit = probe.ridge
  assert probe.probe(train, test, fit) == probe.probe(*moved, fit)


def test_a_constant_channel_is_left_out():
  add = lambda f: f._replace(
      x=np.pad(f.x, ((0, 0), (0, 1)), constant_values=0.1)
  )
  train, test = probe.standardise(add(features()), add(features(seed=1)))
  np.testing.assert_allclose(train.x[:, -1], 0, atol=1e-6)
  np.testing.assert_allclose(test.x[:, -1], 0, atol=1e-6)


def test_top5_appears_with_many_classes():
  many = features(12, 600, 10), features(12, 300, 10, seed=1)
  found = probe.probe(*many, probe.ridge)
  assert found['top1'] < found['top5'] <= 1
  assert found['classes'] == 12 and found['test_images'] == 300
  assert 'top5' not in probe.probe(features(), features(seed=1), probe.ridge)


def test_a_class_that_was_never_trained_is_a_mistake():
  test = features(seed=1)
  test = test._replace(label=np.full_like(test.label, 5))
  assert probe.probe(features(), test, probe.ridge)['top1'] == 0


def test_the_split_is_of_images():
  x = np.arange(50, dtype=np.float32)[:, None]
  data = probe.Features(x, np.arange(50, dtype=np.int32))
  train, test = probe.split(data, 0.2)
  assert len(test.label) == 10
  np.testing.assert_array_equal(test.x[:, 0], test.label)
  together = np.concatenate([train.label, test.label])
  np.testing.assert_array_equal(np.sort(together), np.arange(50))
  np.testing.assert_array_equal(probe.split(data, 0.2)[1].label, test.label)
  assert (probe.split(data, 0.2, seed=1)[1].label != test.label).any()


def batch(count, labels, rows=4):
  image = np.arange(rows, dtype=np.float32)
  return inputs.Batch(
      np.arange(rows), count, image, np.int32(labels), None, None
  )


def encode(batch):
  return batch.image[:, None, None] + np.float32([[0, 1], [2, 3], [4, 8]])


def test_pooled_features_are_means_without_padding():
  batches = [batch(4, [0, 1, 2, 3]), batch(2, [7, 8, 8, 8])]
  found = probe.pooled(encode, batches)
  np.testing.assert_array_equal(found.label, [0, 1, 2, 3, 7, 8])
  expected = np.float32([[0, 0], [1, 1], [2, 2], [3, 3], [0, 0], [1, 1]])
  np.testing.assert_allclose(found.x, expected + [2, 4])
  assert found.x.dtype == np.float32


@pytest.mark.parametrize(
    'call, error, line',
    [
        (
            lambda: probe.pooled(encode, [batch(4, [0, 1, -1, -1])]),
            errors.DataError,
            '2 of 4 images have no label',
        ),
        (
            lambda: probe.pooled(
                lambda b: encode(b) * np.float32(np.nan), [batch(3, [0] * 4)]
            ),
            errors.DataError,
            '3 of 3 features are not finite; the first is of image 0',
        ),
        (
            lambda: probe.split(features(), 0.001),
            errors.UsageError,
            'leaves 240 to train on and 0',
        ),
        (
            lambda: probe.probe(features(1), features(1), probe.ridge),
            errors.DataError,
            'two classes',
        ),
        (
            lambda: probe.probe(features(), features(width=5), probe.ridge),
            errors.DataError,
            'width 7 to train on and of 5',
        ),
    ],
)
def test_bad_input_gets_one_line(call, error, line):
  with pytest.raises(error, match=line) as raised:
    call()
  assert '\n' not in str(raised.value)
