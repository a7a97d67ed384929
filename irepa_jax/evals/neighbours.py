"""Neighbours among many wide features: screened in bfloat16, decided exactly.

The distance |x - y|^2 of all pairs of 50,000 rows is 20 TFLOP. Almost none of
them matter: a row has k nearest neighbours, and lies in few balls or in many.
With rows a = bfloat16(x), b = bfloat16(y) the product is off by no more than

  |x.y - a.b| <= |x - a| |y| + |a| |y - b|                  (Cauchy-Schwarz)

so a product in bfloat16, about twice (six times on TPUs) as fast as in float32,
encloses every squared distance to about 0.3 %. Pairs that this leaves open are
computed from their differences in float64: the results are those of the exact
formula. Distances within a set are symmetric, and taken once. Where a block
leaves too many pairs open (copies, tight clusters) it is computed in float32.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 1024  # rows and columns of a block of distances
GROUPS = 32  # columns of which only the nearest counts for a bound
OPEN = 1 / 16  # of the pairs of a block; more are computed in float32
CHUNK = 512  # pairs whose differences are taken at once
EPS = 2.0**-24  # of one rounding in float32
SLACK = 2.0**-10  # of sums of squares in float32, as a part of their root
PAIR = np.dtype([('row', np.int64), ('column', np.int64), ('low', np.float32)])
NONE = np.empty(0, PAIR)


class Block(NamedTuple):
  """BLOCK rows as the screen reads them, float32 about a common centre.

  square is infinite in rows that fill the last block: far from everything.
  """

  columns: jax.Array  # bfloat16 [d b], the rows on end
  square: jax.Array  # [b]  |x|^2
  length: jax.Array  # [b]  |x|
  error: jax.Array  # [b]  |x - bfloat16(x)|, and what float32 sums lose


class Cloud(NamedTuple):
  """A set of rows [n d] on the host, and their blocks on the device."""

  points: np.ndarray
  centre: np.ndarray
  blocks: list[Block]

  def rows(self, i):
    """Returns the rows of block i about the centre, float32."""
    return np.float32(self.points[_span(i)] - self.centre)


def cloud(points: np.ndarray, centre: np.ndarray) -> Cloud:
  """Returns the cloud of rows [n d]; clouds that meet share a centre [d]."""
  found = Cloud(points, centre, [])
  for i in range(-(-len(points) // BLOCK)):
    rows = found.rows(i)
    padded = np.pad(rows, [(0, BLOCK - len(rows)), (0, 0)])
    found.blocks.append(_block(padded, len(rows)))
  return found


@jax.jit
def _block(x, count):
  # Not astype and back: compilers may leave both out.
  rows = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
  square = jnp.square(x).sum(1)
  length = jnp.sqrt(square)
  error = jnp.sqrt(jnp.square(x - rows).sum(1))
  error = (1 + SLACK) * error + x.shape[1] * EPS * length
  square = jnp.where(jnp.arange(len(x)) < count, square, jnp.inf)
  return Block(rows.astype(jnp.bfloat16).T, square, length, error)


# Radii ------------------------------------------------------------------------


def radii(x: Cloud, k: int) -> np.ndarray:
  """Squared distance of every row to its k-th other row, float64 [n]."""
  bound = [jnp.full((BLOCK, k), jnp.inf)] * len(x.blocks)
  nearest = np.full((len(x.points), k), np.inf)
  pairs = [NONE]
  for i, j, hits in _ahead(_pairs_within(x.blocks, bound, k)):
    hits = np.asarray(hits)
    mask = hits < np.inf
    found = _places(mask, i, j)
    if len(found) > OPEN * BLOCK**2:
      _keep_block(nearest, x, i, j, k)
      continue
    found['low'] = hits[mask]
    pairs.append(found)
  limit = np.concatenate(bound)[:, -1]
  return _kth(x.points, np.concatenate(pairs), limit, nearest, k)


def _pairs_within(blocks, bound, k):
  """Yields (i, j, lower bounds of pairs that may be near), i <= j.

  Tightens bound, from above, on the distances to the k nearest.
  """
  for i, a in enumerate(blocks):
    rows = a.columns.T
    hits, bound[i] = _near_itself(rows, a, bound[i], k)
    yield i, i, hits
    for j in range(i + 1, len(blocks)):
      hits, *bounds = _near(rows, a, blocks[j], bound[i], bound[j], k)
      bound[i], bound[j] = bounds
      yield i, j, hits


def _ahead(items: Iterator) -> Iterator:
  """Yields the items, each while the device works on the next one."""
  held = None
  for item in items:
    if held is not None:
      yield held
    held = item
  if held is not None:
    yield held


@functools.partial(jax.jit, static_argnums=5)
def _near(rows, a, b, bound_a, bound_b, k):
  """Lower bounds of near pairs, and bounds of the k nearest of both sides."""
  low, high = _enclosed(rows, a, b)
  bound_a = _nearest(bound_a, _group_minima(high), k)
  bound_b = _nearest(bound_b, _group_minima_of_columns(high), k)
  near = (low <= _finite(bound_a)[:, None]) | (low <= _finite(bound_b))
  return jnp.where(near, low, jnp.inf), bound_a, bound_b


@functools.partial(jax.jit, static_argnums=3)
def _near_itself(rows, a, bound, k):
  """The same of a block against itself: pairs above the diagonal."""
  low, high = _enclosed(rows, a, a)
  i = jnp.arange(BLOCK)
  high = jnp.where(i[:, None] == i, jnp.inf, high)
  bound = _nearest(bound, _group_minima(high), k)
  near = (low <= _finite(bound)[:, None]) | (low <= _finite(bound))
  return jnp.where(near & (i[:, None] < i), low, jnp.inf), bound


def _enclosed(rows, a, b):
  """Bounds from below and above of the squared distances, float32 [b b].

  rows: a.columns turned; products of two matrices on end take twice as long.
  """
  product = jnp.matmul(rows, b.columns, preferred_element_type=jnp.float32)
  error = a.error[:, None] * b.length + a.length[:, None] * b.error
  square = a.square[:, None] + b.square
  slack = (rows.shape[1] + 8) * EPS * square  # of sums in float32
  low = square - 2 * (product + error) - slack
  return low, square - 2 * (product - error) + slack


def _group_minima(high):
  return high.reshape(BLOCK, -1, GROUPS).min(1)


def _group_minima_of_columns(high):
  return high.reshape(-1, GROUPS, BLOCK).min(0).T


def _nearest(bound, high, k):
  """The k smallest of each row of both, ascending."""
  both = jnp.concatenate([bound, high], axis=1)
  return -jax.lax.top_k(-both, k)[0]


def _finite(bound):
  """The k-th bound; padding, at infinity, is above it."""
  return jnp.minimum(bound[:, -1], jnp.finfo(jnp.float32).max)


def _keep_block(nearest, x, i, j, k):
  """Keeps the k nearest of a block, computed in float32."""
  found = np.array(distances(x.rows(i), x.rows(j)), np.float64)
  if i == j:
    np.fill_diagonal(found, np.inf)
  else:
    _keep(nearest[_span(j)], found.T, k)
  _keep(nearest[_span(i)], found, k)


def _keep(nearest, found, k):
  both = np.concatenate([nearest, found], axis=1)
  nearest[:] = np.partition(both, k - 1, axis=1)[:, :k]


def _kth(points, pairs, limit, nearest, k):
  """The k-th smallest of each row, of open pairs and of what is known."""
  left = pairs['low'] <= limit[pairs['row']]
  right = pairs['low'] <= limit[pairs['column']]
  kept = left | right
  pairs, left, right = pairs[kept], left[kept], right[kept]
  exact = pair_distances(points, points, pairs)
  known = np.repeat(np.arange(len(points)), k)
  owner = np.concatenate([pairs['row'][left], pairs['column'][right], known])
  value = np.concatenate([exact[left], exact[right], nearest.reshape(-1)])
  order = np.lexsort([value, owner])
  first = np.searchsorted(owner[order], np.arange(len(points)))
  return value[order][first + k - 1]


# Coverage ---------------------------------------------------------------------


class Balls(NamedTuple):
  """Squared radii of a block, rounded down and up to float32."""

  inner: jax.Array  # [b]
  outer: jax.Array  # [b]


def covered(
    x: Cloud, y: Cloud, x_radii: np.ndarray, y_radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Whether each row of y is in a ball around x, and each of x in one of y.

  The squared radii are those of `radii`; a row at the radius is in the ball.
  Returns two bool arrays, of the rows of y and of those of x.
  """
  in_x, in_y = np.zeros(len(y.points), bool), np.zeros(len(x.points), bool)
  pairs = [NONE]
  for i, j, hits in _ahead(_pairs_between(x, y, x_radii, y_radii)):
    near_x, near_y, maybe = map(np.asarray, hits)
    _mark(in_x, j, near_x)
    _mark(in_y, i, near_y)
    found = _places(maybe, i, j)
    if len(found) <= OPEN * BLOCK**2:
      pairs.append(found)
      continue
    near = np.asarray(distances(x.rows(i), y.rows(j)))
    _mark(in_x, j, (near <= x_radii[_span(i)][:, None]).any(0))
    _mark(in_y, i, (near <= y_radii[_span(j)]).any(1))
  pairs = np.concatenate(pairs)
  pairs = pairs[~in_x[pairs['column']] | ~in_y[pairs['row']]]
  exact = pair_distances(x.points, y.points, pairs)
  in_x[pairs['column'][exact <= x_radii[pairs['row']]]] = True
  in_y[pairs['row'][exact <= y_radii[pairs['column']]]] = True
  return in_x, in_y


def _mark(flags, i, near):
  """Sets flags of block i where near, which may be padded."""
  part = flags[_span(i)]
  part |= near[: len(part)]


def _pairs_between(x, y, x_radii, y_radii):
  """Yields (i, j, what `_within` says of the pairs of two blocks)."""
  x_balls, y_balls = _balls(x_radii), _balls(y_radii)
  in_x = [jnp.zeros(BLOCK, bool)] * len(y.blocks)
  for i, a in enumerate(x.blocks):
    rows, in_y = a.columns.T, jnp.zeros(BLOCK, bool)
    for j, b in enumerate(y.blocks):
      hits = _within(rows, a, b, x_balls[i], y_balls[j], in_x[j], in_y)
      in_x[j], in_y, _ = hits
      yield i, j, hits


@jax.jit
def _within(rows, a, b, a_balls, b_balls, in_a, in_b):
  """Which of b are in a ball of a, of a in one of b, and which pairs may tell.

  in_a, in_b: what is known of the two already.
  """
  low, high = _enclosed(rows, a, b)
  in_a |= (high <= a_balls.inner[:, None]).any(0)
  in_b |= (high <= b_balls.inner).any(1)
  maybe = (low <= a_balls.outer[:, None]) & ~in_a
  return in_a, in_b, maybe | ((low <= b_balls.outer) & ~in_b[:, None])


def _balls(radii):
  """Returns the Balls of every block; those of padding hold nothing."""
  blocks = []
  for i in range(0, len(radii), BLOCK):
    r = np.float32(radii[i : i + BLOCK])
    r = np.pad(r, (0, BLOCK - len(r)), constant_values=-1)
    inner, outer = (np.nextafter(r, np.float32(to)) for to in (-np.inf, np.inf))
    blocks.append(Balls(jnp.asarray(inner), jnp.asarray(outer)))
  return blocks


# Pairs ------------------------------------------------------------------------


def _span(i):
  return slice(i * BLOCK, (i + 1) * BLOCK)


def _places(mask, i, j):
  """Returns where a mask of block (i, j) is true, as pairs of rows."""
  row, column = np.divmod(np.flatnonzero(mask), BLOCK)
  pairs = np.zeros(len(row), PAIR)
  pairs['row'], pairs['column'] = i * BLOCK + row, j * BLOCK + column
  return pairs


def pair_distances(x, y, pairs):
  """Squared distances of rows of x and y, from float64 differences."""
  found = np.empty(len(pairs))
  for i in range(0, len(pairs), CHUNK):
    part = pairs[i : i + CHUNK]
    apart = np.subtract(x[part['row']], y[part['column']], dtype=np.float64)
    found[i : i + CHUNK] = np.einsum('nd,nd->n', apart, apart)
  return found


def distances(x, y):
  """Squared distances [n m] of rows x [n d] and y [m d], float32."""
  square = lambda a: jnp.square(a).sum(1)
  product = jnp.matmul(x, y.T, precision='highest')
  return jnp.maximum(square(x)[:, None] - 2 * product + square(y), 0)
