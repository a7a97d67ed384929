"""FID, sFID, Inception Score, precision and recall, KID and CMMD of features.

Each follows the code that published figures come from: the ADM suite
(guided-diffusion/evaluations/evaluator.py) for FID, sFID, Inception Score,
precision and recall; torch-fidelity for KID; google-research/cmmd for CMMD.
Statistics are float64 on the host; what is quadratic in the number of images
runs in blocks, on the device where float32 is enough.
"""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from irepa_jax import errors
from irepa_jax.evals import neighbours

Array = np.ndarray | jax.Array
Rows = Float[Array, '_ _']  # [n d], one row per image

ADM_SPLIT = 5000  # images per split of the Inception Score
BLOCK = 1024  # rows of a distance matrix at a time
LANES = 8  # of float16 in a register
LARGEST_HALF = 65504.0


class Moments(NamedTuple):
  """Count, mean and centred scatter of feature rows, float64 on the host."""

  count: int
  mean: np.ndarray  # [d]
  scatter: np.ndarray  # [d d]  sum of (x - mean)(x - mean)^T


def no_moments(width):
  """Returns the moments of no rows."""
  return Moments(0, np.zeros(width), np.zeros((width, width)))


def add(moments, features, valid=None):
  """Adds the rows of a batch [b d]; `valid` [b] leaves out padding.

  The sums are taken on the device, in float32 and about the batch's own mean;
  batches are merged in float64 (Chan, Golub and LeVeque 1983).
  """
  if valid is None:
    valid = np.ones(len(features), bool)
  count, mean, scatter = jax.device_get(_batch_moments(features, valid))
  if not np.isfinite(mean).all():
    _check(np.asarray(features)[np.asarray(valid)], 'features')
  batch = Moments(int(count), mean.astype(float), scatter.astype(float))
  return merge(moments, batch)


def merge(a, b):
  """Returns the moments of the rows of both."""
  count = a.count + b.count
  if count == 0:
    return a
  delta = b.mean - a.mean
  mean = a.mean + delta * (b.count / count)
  outer = np.outer(delta, delta) * (a.count * b.count / count)
  return Moments(count, mean, a.scatter + b.scatter + outer)


def statistics(moments):
  """Returns the mean [d] and the covariance [d d], divided by count - 1."""
  if moments.count < 2:
    raise errors.DataError(
        f'a covariance needs at least 2 images, got {moments.count}'
    )
  return moments.mean, moments.scatter / (moments.count - 1)


@jax.jit
def _batch_moments(features, valid):
  x = features.astype(jnp.float32)
  weight = valid.astype(jnp.float32)
  count = weight.sum()
  mean = weight @ jnp.where(valid[:, None], x, 0) / jnp.maximum(count, 1)
  centred = jnp.where(valid[:, None], x - mean, 0)
  scatter = jnp.matmul(centred.T, centred, precision='highest')
  return count, mean, scatter


def fid(
    mu1: Float[Array, 'd'],
    sigma1: Float[Array, 'd d'],
    mu2: Float[Array, 'c'],
    sigma2: Float[Array, 'c c'],
) -> float:
  """Frechet distance of two Gaussians; sFID is the same of spatial features.

  |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)). The trace of
  the root is the sum of the singular values of a^T b, for any factors a a^T =
  sigma1 and b b^T = sigma2: real, and exact for covariances without full rank.
  Rounding in float32 gives those small negative eigenvalues; they count as zero
  in all three traces, so a set is at distance zero from itself and none below.
  """
  mu1, sigma1, mu2, sigma2 = (
      np.asarray(x, np.float64) for x in (mu1, sigma1, mu2, sigma2)
  )
  if mu1.shape != mu2.shape:
    raise errors.DataError(
        f'statistics of {len(mu1)} and of {len(mu2)} features do not compare'
    )
  for name, x in [('mean', mu1 - mu2), ('covariance', sigma1 + sigma2)]:
    if not np.isfinite(x).all():
      raise errors.DataError(f'a {name} has values that are not finite')
  a, b = _factor(sigma1), _factor(sigma2)
  cross = np.linalg.svd(a.T @ b, compute_uv=False).sum()
  distance = np.square(mu1 - mu2).sum()
  return float(distance + np.square(a).sum() + np.square(b).sum() - 2 * cross)


def _factor(sigma):
  """Returns a with a @ a.T = sigma.

  Of full rank that of Cholesky, at a tenth of the cost; else a column for each
  eigenvalue above rounding.
  """
  with contextlib.suppress(np.linalg.LinAlgError):
    return np.linalg.cholesky(sigma)
  values, vectors = np.linalg.eigh(sigma)
  keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0)
  return vectors[:, keep] * np.sqrt(values[keep])


def inception_score(
    logits: Rows,
    splits: int | None = None,
    *,
    split_size: int = ADM_SPLIT,
    shuffle_seed: int | None = None,
) -> float:
  """exp of the mean KL of p(y|x) from p(y), averaged over splits of the rows.

  By default as ADM: logits without the bias, splits of 5000 in the order given.
  torch-fidelity: splits=10, shuffle_seed=2020.
  """
  logits = _check(logits, 'logits').astype(np.float64)
  n = len(logits)
  if shuffle_seed is not None:
    logits = logits[np.random.RandomState(shuffle_seed).permutation(n)]
  if splits is None:
    edges = [*range(0, n, split_size), n]
  else:
    edges = [i * n // splits for i in range(splits + 1)]
  if any(a == b for a, b in zip(edges, edges[1:], strict=False)):
    raise errors.UsageError(f'{splits} splits need as many images, got {n}')
  parts = zip(edges, edges[1:], strict=False)
  return float(np.mean([_split_score(logits[a:b]) for a, b in parts]))


def _split_score(logits):
  log_p = logits - logits.max(1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
  p = np.exp(log_p)
  log_q = np.log(np.maximum(p.mean(0), np.finfo(float).tiny))
  return np.exp((p * (log_p - log_q)).sum(1).mean())


def precision_recall(
    real: Rows, fake: Rows, k: int = 3, *, half: bool = False
) -> tuple[float, float]:
  """Improved precision and recall, Kynkaanniemi et al. 2019, arXiv 1904.06991.

  A point lies in a manifold if it is within (<=) the distance from some member
  to that member's k-th neighbour. `half` rounds squared distances to float16,
  as the ADM suite does; its published figures use 10,000 real images.
  """
  real, fake = _check(real, 'real features'), _check(fake, 'fake features')
  _same_width(real, fake)
  for name, x in [('real', real), ('fake', fake)]:
    if len(x) <= k:
      raise errors.DataError(f'k={k} needs {k + 1} {name} images, got {len(x)}')
  if half:
    precision, recall = _in_half_precision(real, fake, k)
  else:
    # Distances do not change, rounding gets smaller.
    centre = real.mean(0, dtype=np.float64).astype(real.dtype)
    real, fake = (neighbours.cloud(x, centre) for x in (real, fake))
    radii = (neighbours.radii(x, k) for x in (real, fake))
    precision, recall = neighbours.covered(real, fake, *radii)
  return float(precision.mean()), float(recall.mean())


def _in_half_precision(real, fake, k):
  real, fake = (jnp.asarray(x, jnp.float32) for x in (real, fake))
  radii = (_radii(x, k, _half_distances) for x in (real, fake))
  return _covered(real, fake, *radii, _half_distances)


def _radii(x, k, distances):
  """Squared distance of every row to its k-th neighbour, itself left out."""
  return jnp.concatenate(
      [_kth(x[i : i + BLOCK], x, k, distances) for i in range(0, len(x), BLOCK)]
  )


def _covered(real, fake, real_radii, fake_radii, distances):
  """Whether each fake row is near a real one, and each real row near a fake.

  Every distance is computed once, with real images as rows, as ADM does.
  """
  fakes, reals = np.zeros(len(fake), bool), []
  for i in range(0, len(real), BLOCK):
    rows = slice(i, i + BLOCK)
    near_real, near_fake = _within(
        real[rows], fake, real_radii[rows], fake_radii, distances
    )
    fakes |= np.asarray(near_real)
    reals.append(np.asarray(near_fake))
  return fakes, np.concatenate(reals)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _kth(x, members, k, distances):
  # A row is its own nearest neighbour, at distance zero. The smallest are taken
  # away one by one: on CPUs eight times faster than top_k.
  found = distances(x, members)
  columns = jnp.arange(len(members))
  for _ in range(k):
    nearest = found.argmin(1)
    found = jnp.where(columns == nearest[:, None], jnp.inf, found)
  return found.min(1)


@functools.partial(jax.jit, static_argnums=4)
def _within(real, fake, real_radii, fake_radii, distances):
  found = distances(real, fake)
  near_real = (found <= real_radii[:, None]).any(0)
  return near_real, (found <= fake_radii).any(1)


_distances = neighbours.distances


def _half_distances(x, y):
  """Squared distances in float16; in float32 if any of the block overflows."""
  a, b = _half(x), _half(y)
  product = _half(jnp.matmul(a, b.T, precision='highest'))
  apart = _half(_half_squares(a)[:, None] - 2 * product)
  rounded = jnp.maximum(_half(apart + _half_squares(b)), 0)
  finite = jnp.isfinite(rounded).all()
  return jnp.where(finite, rounded, _distances(x, y))


def _half_squares(x):
  """Sums the squares of rows [n d] as ADM's TensorFlow does.

  Each square is rounded to float16, eight lanes are summed in float16, one
  after the other, and the lanes in float32. Parity: pr/radii_ref_fp16.
  """
  n, d = x.shape
  squares = jnp.pad(_half(jnp.square(x)), ((0, 0), (0, -d % LANES)))
  add = lambda total, square: (_half(total + square), None)
  rows = squares.reshape(n, -1, LANES).swapaxes(0, 1)
  lanes, _ = jax.lax.scan(add, jnp.zeros((n, LANES)), rows)
  return _half(lanes.sum(1))


def _half(x):
  """Rounds float32 to the numbers of float16; what is too large is infinite.

  Not by casts, which compilers fold into one another; reduce_precision drops
  the numbers below the smallest normal one, which are multiples of 2^-24.
  """
  normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
  return jnp.where(abs(x) < 2**-14, jnp.round(x * 2**24) * 2**-24, normal)


def kid(
    real: Rows,
    fake: Rows,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
  """Kernel distance: mean and deviation of the MMD^2 of random subsets.

  Binkowski et al. 2018, arXiv 1801.01401. Subsets are drawn as torch-fidelity
  draws them, the fakes first.
  """
  real, fake = _check(real, 'real features'), _check(fake, 'fake features')
  _same_width(real, fake)
  if min(len(real), len(fake)) < subset_size:
    raise errors.UsageError(
        f'KID subsets of {subset_size} need as many images; there are'
        f' {len(real)} real and {len(fake)} fake ones'
    )
  rng = np.random.RandomState(seed)
  values = []
  for _ in range(subsets):
    y = fake[rng.choice(len(fake), subset_size, replace=False)]
    x = real[rng.choice(len(real), subset_size, replace=False)]
    values.append(polynomial_mmd(x, y))
  return float(np.mean(values)), float(np.std(values))


def polynomial_mmd(x: Rows, y: Rows) -> float:
  """Unbiased MMD^2 under the kernel (x.y / d + 1)^3, float64."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  kernel = lambda a, b: _cube(a @ b.T / x.shape[1] + 1)
  apart = lambda g: (g.sum() - np.trace(g)) / (len(g) * (len(g) - 1))
  same = apart(kernel(x, x)) + apart(kernel(y, y))
  return float(same - 2 * kernel(x, y).mean())


def _cube(x):
  return x * x * x  # x**3 goes through logarithms, ten times slower


CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0


def cmmd(real: Rows, fake: Rows) -> float:
  """CMMD of CLIP image embeddings, Jayasumana et al. 2024, arXiv 2401.09603.

  1000 times the biased MMD^2 under exp(-|x - y|^2 / (2 * 10^2)); the embeddings
  are scaled to unit length here.

  That is exp((p - 1) / 100) of products p of -1 to 1: nearly a parabola. About
  p0, its first three terms come from means and second moments in float64; the
  rest, below 2e-6, from all pairs in float32, so the sum is good to 1e-12.
  """
  real, fake = _check(real, 'real features'), _check(fake, 'fake features')
  _same_width(real, fake)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  real, fake = (unit(x.astype(np.float64)) for x in (real, fake))
  means = real.mean(0), fake.mean(0)
  moments = [x.T @ x / len(x) for x in (real, fake)]
  p0, c = float(means[0] @ means[1]), 1 / CMMD_SIGMA**2
  parabola = (c - c**2 * p0) * np.square(means[0] - means[1]).sum()
  parabola += c**2 / 2 * np.square(moments[0] - moments[1]).sum()
  real, fake = (x.astype(np.float32) for x in (real, fake))
  rest = _mean_rest(real, real, p0) + _mean_rest(fake, fake, p0)
  rest -= 2 * _mean_rest(real, fake, p0)
  return CMMD_SCALE * float(np.exp(c * (p0 - 1)) * (parabola + rest))


def _mean_rest(x, y, p0):
  """Mean over all pairs of exp(q) - 1 - q - q^2/2, q = (x.y - p0) / sigma^2."""
  total = 0.0
  for i in range(0, len(x), BLOCK):
    for j in range(i if x is y else 0, len(y), BLOCK):
      weight = 2 if x is y and i < j else 1
      total += weight * float(_rest(x[i : i + BLOCK], y[j : j + BLOCK], p0))
  return total / (len(x) * len(y))


@jax.jit
def _rest(x, y, p0):
  q = (jnp.matmul(x, y.T, precision='highest') - p0) / CMMD_SIGMA**2
  # As a series: nothing cancels. What it leaves out is below 1e-16.
  return (q**3 / 6 * (1 + q / 4 * (1 + q / 5 * (1 + q / 6)))).sum()


def _check(features, name):
  """Returns the rows as an array; refuses none, and values not finite."""
  features = np.asarray(features)
  if features.ndim != 2 or not len(features):
    raise errors.DataError(f'{name} must be rows [n d], got {features.shape}')
  bad = np.flatnonzero(~np.isfinite(features).all(1))
  if bad.size:
    raise errors.DataError(
        f'{bad.size} of {len(features)} rows of {name} are not finite; the'
        f' first is row {bad[0]}'
    )
  return features


def _same_width(real, fake):
  if real.shape[1] != fake.shape[1]:
    raise errors.DataError(
        f'features of width {real.shape[1]} and of {fake.shape[1]} do not'
        ' compare'
    )
