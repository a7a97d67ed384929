"""Paths from data to noise, and the quantities a network may predict on them.

  x_t = alpha(t) x + sigma(t) noise         t = 0 is data, t = 1 is noise
  v   = alpha'(t) x + sigma'(t) noise       the velocity dx_t / dt

Any two of (x_t, v, x, noise, score) give the others; with the determinant
D = alpha sigma' - alpha' sigma, which is 1 (linear) or pi/2 (cosine),

  x     = (sigma' x_t - sigma v) / D
  noise = (alpha v - alpha' x_t) / D
  score = -noise / sigma

SiT (arXiv 2401.08740), section 2; stochastic interpolants (arXiv 2303.08797).
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float

QUARTER = math.pi / 2
Time = Float[Array, ''] | Float[Array, 'b']


class Path(NamedTuple):
  """alpha and sigma as functions of t, their derivatives, and the inverse.

  time(sigma / alpha) -> t: a distribution of the ratio of noise to signal
  gives one of t on any path.
  """

  alpha: Callable[[jax.Array], jax.Array]
  sigma: Callable[[jax.Array], jax.Array]
  d_alpha: Callable[[jax.Array], jax.Array]
  d_sigma: Callable[[jax.Array], jax.Array]
  time: Callable[[jax.Array], jax.Array]


linear = Path(
    alpha=lambda t: 1 - t,
    sigma=lambda t: t,
    d_alpha=lambda t: -jnp.ones_like(t),
    d_sigma=jnp.ones_like,
    time=lambda ratio: ratio / (1 + ratio),
)
cosine = Path(
    alpha=lambda t: jnp.cos(QUARTER * t),
    sigma=lambda t: jnp.sin(QUARTER * t),
    d_alpha=lambda t: -QUARTER * jnp.sin(QUARTER * t),
    d_sigma=lambda t: QUARTER * jnp.cos(QUARTER * t),
    time=lambda ratio: jnp.arctan(ratio) / QUARTER,
)
PATHS = {'linear': linear, 'cosine': cosine}


def interpolate(
    x: Float[Array, 'b ...'],
    noise: Float[Array, 'b ...'],
    t: Time,
    path: Path = linear,
) -> Float[Array, 'b ...']:
  """Returns x_t; t is one number or one for each row, as in all functions."""
  t = _like(t, x)
  return path.alpha(t) * x + path.sigma(t) * noise


def velocity(
    x: Float[Array, 'b ...'],
    noise: Float[Array, 'b ...'],
    t: Time,
    path: Path = linear,
) -> Float[Array, 'b ...']:
  """Returns v, the direction from data to noise."""
  t = _like(t, x)
  return path.d_alpha(t) * x + path.d_sigma(t) * noise


def convert(
    value: Float[Array, 'b ...'],
    x_t: Float[Array, 'b ...'],
    t: Time,
    path: Path = linear,
    *,
    source: str,
    target: str,
    floor: float = 0.0,
) -> Float[Array, 'b ...']:
  """Turns one of 'v', 'x', 'eps', 'score' at (x_t, t) into another.

  Args:
    value: the known quantity.
    x_t: where it is known.
    t: when.
    path: the path.
    source: what `value` is.
    target: what to return.
    floor: least divisor. From 'x' the divisor is sigma and vanishes at data;
      from 'eps' it is alpha and vanishes at noise; to 'score' it is sigma.
  """
  if source == target:
    return value
  c = Coefficients(*(f(_like(t, x_t)) for f in path[:4]), floor)
  return _FROM_V[target](_TO_V[source](value, x_t, c), x_t, c)


def error_ratio(
    x: Float[Array, 'b ...'],
    t: Time,
    path: Path = linear,
    *,
    source: str,
    target: str,
    floor: float = 0.0,
) -> Float[Array, '...']:
  """Returns what an error of `source` is as one of `target`, both 'v', 'x', 'eps'.

  At one x_t their sizes are as D : sigma : alpha, so that a mean of squares in
  one space is that of another times this ratio squared. The divisor stays above
  `floor`; x is there for its shape.
  """
  c = Coefficients(*(f(_like(t, x)) for f in path[:4]), floor)
  size = {'v': c.determinant, 'x': c.sigma, 'eps': c.alpha}
  return size[target] / jnp.maximum(size[source], floor)


def floored_velocity(
    value: Float[Array, 'b ...'],
    x_t: Float[Array, 'b ...'],
    t: Time,
    path: Path = linear,
    *,
    source: str,
    floor: float,
) -> Float[Array, 'b ...']:
  """Returns v from 'v', 'x' or 'eps', as one quotient whose divisor is floored.

    v = (sigma' x_t - D x) / sigma = (alpha' x_t + D noise) / alpha

  Above the floor that is `convert`, which keeps the floor below the noise (or
  below x) alone. JiT divides so (arXiv 2511.13720): near data it slows down.
  """
  c = Coefficients(*(f(_like(t, x_t)) for f in path[:4]), floor)
  if source == 'x':
    above = c.d_sigma * x_t - c.determinant * value
    return above / jnp.maximum(c.sigma, floor)
  if source == 'eps':
    above = c.d_alpha * x_t + c.determinant * value
    return above / jnp.maximum(c.alpha, floor)
  return value


class Coefficients(NamedTuple):
  """A path at one time, shaped to multiply images."""

  alpha: jax.Array
  sigma: jax.Array
  d_alpha: jax.Array
  d_sigma: jax.Array
  floor: float

  @property
  def determinant(self):
    return self.alpha * self.d_sigma - self.d_alpha * self.sigma


def _v_from_x(x, x_t, c):
  noise = (x_t - c.alpha * x) / jnp.maximum(c.sigma, c.floor)
  return c.d_alpha * x + c.d_sigma * noise


def _v_from_eps(noise, x_t, c):
  x = (x_t - c.sigma * noise) / jnp.maximum(c.alpha, c.floor)
  return c.d_alpha * x + c.d_sigma * noise


def _x_from_v(v, x_t, c):
  return (c.d_sigma * x_t - c.sigma * v) / c.determinant


def _eps_from_v(v, x_t, c):
  return (c.alpha * v - c.d_alpha * x_t) / c.determinant


_TO_V = {
    'v': lambda v, x_t, c: v,
    'x': _v_from_x,
    'eps': _v_from_eps,
    'score': lambda score, x_t, c: _v_from_eps(-c.sigma * score, x_t, c),
}
_FROM_V = {
    'v': lambda v, x_t, c: v,
    'x': _x_from_v,
    'eps': _eps_from_v,
    'score': lambda v, x_t, c: (
        -_eps_from_v(v, x_t, c) / jnp.maximum(c.sigma, c.floor)
    ),
}


def _like(t, x):
  """Shapes t, [] or [b], to multiply x [b ...]."""
  return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
