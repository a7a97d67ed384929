"""Linear probe: how well a linear map reads the class off frozen features.

Features are the mean token of each image, standardised by the mean and the
deviation over the training images, and never change. Two classifiers:

  ridge    W = argmin |X W - Y|^2 + alpha |W|^2,  Y in {-1, 1}; closed form,
           scikit-learn's RidgeClassifier
  softmax  W, b = argmin mean(-log softmax(x W + b)[y]) + decay / 2 |W|^2 by
           Adam or by SGD with momentum, cosine decay of the rate to zero;
           the optimum is scikit-learn's LogisticRegression, C = 1 / (n decay)

What is reported is the share of held-out images whose class is the first, or
among the first five, of the classifier's scores.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irepa_jax import errors

ROWS = 8192  # of the features in float64 at a time
CONSTANT = 1e-6  # of the mean: a deviation that is rounding
TOP = 5  # the second accuracy, where there are more than 2 TOP classes
OPTIMISERS = {
    'adam': optax.adam,
    'sgd': functools.partial(optax.sgd, momentum=0.9),
}


class Features(NamedTuple):
  """One row per image."""

  x: np.ndarray  # float32 [n d]
  label: np.ndarray  # int32 [n]


class Linear(NamedTuple):
  """Scores x @ weight + bias, [n classes]."""

  weight: np.ndarray  # [d classes]
  bias: np.ndarray  # [classes]


def pooled(encode, batches):
  """Returns the Features of all batches; only mean tokens are held.

  encode: batch -> tokens [b n d]; batches: with `count` rows that are no
  padding and `label` [b]. Raises DataError for images without a label and for
  tokens that are not finite.
  """
  mean = jax.jit(lambda tokens: tokens.mean(axis=1, dtype=jnp.float32))
  rows, labels = [], []
  for batch in batches:
    rows.append(np.asarray(mean(encode(batch)))[: batch.count])
    labels.append(np.asarray(batch.label)[: batch.count])
  x, label = np.concatenate(rows), np.concatenate(labels).astype(np.int32)
  if (label < 0).any():
    raise errors.DataError(
        f'{(label < 0).sum()} of {len(label)} images have no label: a probe'
        ' needs a prepared data set or a source with one folder per class'
    )
  bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
  if bad.size:
    raise errors.DataError(
        f'{bad.size} of {len(x)} features are not finite; the first is of'
        f' image {bad[0]}'
    )
  return Features(x, label)


def split(features, share, seed=0):
  """Returns (training, held-out) Features; `share` of the images, drawn once.

  The same images are held out for all features of the same images.
  """
  n = len(features.label)
  count = round(share * n)
  if not 0 < count < n:
    raise errors.UsageError(
        f'holding out {share:g} of {n} images leaves {n - count} to train on'
        f' and {count} to test'
    )
  order = np.random.default_rng(seed).permutation(n)
  part = lambda rows: Features(*(v[np.sort(rows)] for v in features))
  return part(order[count:]), part(order[:count])


def standardise(train, test):
  """Returns both with the training images' mean 0 and deviation 1.

  A channel that is constant over the training images becomes 0 everywhere in
  them.
  """
  mean = train.x.mean(axis=0, dtype=np.float64)
  deviation = train.x.std(axis=0, dtype=np.float64)
  varies = deviation > CONSTANT * np.abs(mean)
  scale = np.float32(1 / np.where(varies, deviation, 1))
  move = lambda f: f._replace(x=(f.x - np.float32(mean)) * scale)
  return move(train), move(test)


def ridge(train, num_classes, *, alpha=1.0):
  """Returns the Linear of ridge regression on targets -1 and 1; alpha > 0."""
  x, label = train
  n, d = x.shape
  counts = np.bincount(label, minlength=num_classes).astype(float)
  total, gram, sums = np.zeros(d), np.zeros((d, d)), np.zeros((num_classes, d))
  for i in range(0, n, ROWS):
    block, classes = x[i : i + ROWS].astype(np.float64), label[i : i + ROWS]
    total += block.sum(0)
    gram += block.T @ block
    np.add.at(sums, classes, block)
  mean, target = total / n, 2 * counts / n - 1
  gram -= n * np.outer(mean, mean)
  # sum over images of (x - mean)(y - mean y)^T for y = 2 [class] - 1
  cross = 2 * (sums - np.outer(counts, mean)).T
  weight = np.linalg.solve(gram + alpha * np.eye(d), cross)
  return Linear(weight, target - mean @ weight)


def softmax(
    train,
    num_classes,
    *,
    optimiser='adam',
    learning_rate=1e-2,
    epochs=100,
    batch_size=1024,
    decay=0.0,
    seed=0,
):
  """Returns the Linear of softmax regression.

  Args:
    train: Features, standardised.
    num_classes: labels are below it.
    optimiser: adam or sgd.
    learning_rate: at the start; it falls to zero as a cosine.
    epochs: passes over the images in a new order each, whole batches only.
    batch_size: images per step, all of them when there are fewer.
    decay: weight of |W|^2 / 2 in the loss.
    seed: of the order.
  """
  x, label = jnp.asarray(train.x), jnp.asarray(train.label)
  n, d = x.shape
  batch_size = min(batch_size, n)
  steps = n // batch_size
  rate = optax.cosine_decay_schedule(learning_rate, epochs * steps)
  transform = OPTIMISERS[optimiser](rate)
  params = Linear(jnp.zeros((d, num_classes)), jnp.zeros(num_classes))

  def step(carry, rows):
    params, state = carry
    gradient = jax.grad(loss)(params, x[rows], label[rows], decay)
    with jax.numpy_dtype_promotion('standard'):
      updates, state = transform.update(gradient, state)
    return (optax.apply_updates(params, updates), state), None

  @functools.partial(jax.jit, donate_argnums=0)
  def epoch(carry, key):
    order = jax.random.permutation(key, n)[: steps * batch_size]
    return jax.lax.scan(step, carry, order.reshape(steps, batch_size))[0]

  carry = (params, transform.init(params))
  for key in jax.random.split(jax.random.key(seed), epochs):
    carry = epoch(carry, key)
  found = Linear(*map(np.asarray, carry[0]))
  if not np.isfinite(found.weight).all():
    raise errors.DataError(
        f'the probe diverged at learning_rate={learning_rate:g}; lower it'
    )
  return found


def loss(params, x, label, decay=0.0):
  """Mean cross-entropy of Linear scores plus decay / 2 |W|^2, float32."""
  logits = jnp.matmul(x, params.weight, precision='highest') + params.bias
  entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  return entropy.mean() + decay / 2 * jnp.square(params.weight).sum()


def accuracy(linear, features, k=1):
  """Share of images whose class is among the k highest scores."""
  correct = 0
  for i in range(0, len(features.label), ROWS):
    scores = features.x[i : i + ROWS] @ linear.weight + linear.bias
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    correct += (best == features.label[i : i + ROWS, None]).any(1).sum()
  return float(correct / len(features.label))


def probe(train, test, fit):
  """Trains a classifier and returns its accuracies as a dict.

  fit: (train, num_classes) -> Linear, of standardised features. Classes that
  occur only among the held-out images count as mistakes.
  """
  if train.x.shape[1] != test.x.shape[1]:
    raise errors.DataError(
        f'features of width {train.x.shape[1]} to train on and of'
        f' {test.x.shape[1]} held out'
    )
  classes = len(np.unique(train.label))
  if classes < 2:
    raise errors.DataError('a probe needs two classes at least')
  train, test = standardise(train, test)
  num_classes = 1 + max(train.label.max(), test.label.max())
  linear = fit(train, num_classes)
  found = {'top1': accuracy(linear, test)}
  if num_classes > 2 * TOP:
    found['top5'] = accuracy(linear, test, TOP)
  return found | {
      'train_top1': accuracy(linear, train),
      'train_images': len(train.label),
      'test_images': len(test.label),
      'classes': classes,
      'width': train.x.shape[1],
  }
