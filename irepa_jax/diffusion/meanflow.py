"""MeanFlow: the mean velocity over a stretch of time, so that one step is enough.

  u(z, t, r) = mean of v along the path from r to t            r <= t
  u = v - (t - r) du/dt          du/dt along (v, 1, 0) in (z, t, r)

The network takes h = t - r beside t. Its target is the right-hand side, where
du/dt is its own derivative, by one product in forward mode, and nothing in the
target gets a gradient. Where r = t, a fixed share of the rows, the target is
that of flow matching; those rows take no part in the product. Guidance can be
trained into the target,

  v_g = omega v + (1 - omega - kappa) u(z, t, t, null) + kappa u(z, t, t, y)

for times in an interval; its scale is omega / (1 - kappa). The squared error of
a row, summed, is divided by itself plus a little, which makes the value of the
loss about 1 whatever happens: `measured` tells more.

Improved MeanFlow takes du/dt along the network's own velocity u(z, t, t), and
the guidance is one of its inputs: a scale w and an interval, drawn per row,

  v_g = v + (1 - 1/w) (u(z, t, t, y) - u(z, t, t, null))

so that one training serves every scale.

MeanFlow (arXiv 2505.13447), improved MeanFlow (arXiv 2512.02012), on the linear
path; t = 1 is noise.
"""

from collections.abc import Callable
import dataclasses
import fractions
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
import numpy as np

from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths

LARGEST_GROUP = 16  # rows among which the share with r = t is exact
OUTLIER = 1e4  # squared error of a row that a healthy run never sees


class Draw(NamedTuple):
  """The randomness of one batch.

  t: times in [0, 1]; 1 is noise.
  noise: standard normal, shaped as the latents.
  y: labels, some of them replaced by the null label.
  r: times in [0, t].
  given: further inputs of the network, arrays [b ...].
  """

  t: Float[Array, 'b']
  noise: Float[Array, 'b ...']
  y: Int[Array, 'b']
  r: Float[Array, 'b']
  given: tuple[jax.Array, ...] = ()


class Terms(NamedTuple):
  """What the loss of a batch is made of, all [b ...] and float32.

  u: the prediction. velocity: of the path. guided: v_g. derivative: du/dt, 0 in
  rows that take no part in the product. target: of u.
  """

  u: jax.Array
  velocity: jax.Array
  guided: jax.Array
  derivative: jax.Array
  target: jax.Array


@dataclasses.dataclass(frozen=True)
class MeanFlow:
  """Settings of the objective; apply(z, t, y, h, *given) -> (u, tokens).

  A network is a pytree of its weights (jax.tree_util.Partial), so that they can
  be stopped; the operations of the product need a forward mode.

  null_label: usually the number of classes.
  time: time(key, count, path) -> [count], of both times, see objectives.TIMES.
  label_dropout: share of the labels that become null_label, in rows with r = t
    as long as there are enough.
  data_proportion: share of the rows with r = t.
  omega, kappa: guidance inside the target, see above; (1, 0) is none.
  interval: guided where low <= t <= high.
  power, eps: the weight of a row is (its squared error + eps)^-power.
  product: network -> the one for the product, with its weights stopped; maybe
    of other operations, in another dtype.
  shards: parts of equal size in which the devices hold the rows.
  """

  null_label: int
  time: Callable[..., jax.Array] = objectives.logit_normal
  label_dropout: float = 0.1
  data_proportion: float = 0.75
  omega: float = 1.0
  kappa: float = 0.0
  interval: tuple[float, float] = (0.0, 1.0)
  power: float = 1.0
  eps: float = 0.01
  product: Callable[[Any], Any] = jax.lax.stop_gradient
  shards: int = 1

  def draw(
      self, key: jax.Array, x: Float[Array, 'b ...'], y: Int[Array, 'b']
  ) -> Draw:
    """Draws times, noise and dropped labels for one batch."""
    k_t, k_r, k_noise, k_drop = jax.random.split(key, 4)
    one, other = (self.time(k, len(x), paths.linear) for k in (k_t, k_r))
    t, moves = jnp.maximum(one, other), self._moves(len(x))
    dropped = jax.random.uniform(k_drop, y.shape) < self._dropout(moves)
    return Draw(
        t=t,
        noise=jax.random.normal(k_noise, x.shape),
        y=jnp.where(dropped, jnp.asarray(self.null_label, y.dtype), y),
        r=jnp.where(moves, jnp.minimum(one, other), t),
    )

  def loss(
      self, apply: Callable[..., Any], x: Float[Array, 'b ...'], draw: Draw
  ) -> tuple[Float[Array, 'b'], Any]:
    """Returns the weighted loss of each image and the tokens of the network."""
    return self.measured(apply, x, draw)[:2]

  def measured(
      self, apply: Callable[..., Any], x: Float[Array, 'b ...'], draw: Draw
  ) -> tuple[Float[Array, 'b'], Any, dict[str, jax.Array]]:
    """Returns the same, and scalars that show how a run is doing.

    error: squared error, summed over an image. velocity_error: that against
    the path's velocity. derivative: du/dt where r < t, root of the mean square.
    outliers: share of rows with an error above OUTLIER.
    """
    terms, tokens = self.terms(apply, x, draw)
    error = _squares(terms.u - terms.target)
    still = jax.lax.stop_gradient(error)
    moved = (draw.r < draw.t).astype(jnp.float32)
    slope = moved * _squares(terms.derivative) / terms.u[0].size
    return self.weighted(terms), tokens, {
        'error': still.mean(),
        'velocity_error': _squares(terms.u - terms.velocity).mean(),
        'derivative': jnp.sqrt(slope.sum() / jnp.maximum(moved.sum(), 1)),
        'outliers': (still > OUTLIER).mean(),
    }

  def weighted(self, terms: Terms) -> Float[Array, 'b']:
    """Returns the loss of each image, its weight without a gradient."""
    error = _squares(terms.u - terms.target)
    still = jax.lax.stop_gradient(error)
    return error / (still + self.eps) ** self.power

  def terms(
      self, apply: Callable[..., Any], x: Float[Array, 'b ...'], draw: Draw
  ) -> tuple[Terms, Any]:
    """Returns (what the loss is made of, tokens [b n d] of the network)."""
    z = paths.interpolate(x, draw.noise, draw.t)
    velocity = paths.velocity(x, draw.noise, draw.t)
    h = draw.t - draw.r
    u, tokens = apply(z, draw.t, draw.y, h, *draw.given)
    u = u.astype(jnp.float32)
    held = jax.lax.stop_gradient(apply)
    guided, along = jax.lax.stop_gradient(
        self._guided(held, u, z, velocity, draw)
    )
    derivative = self._derivative(self.product(apply), z, along, draw)
    target = guided - _like(jnp.clip(h, 0, 1), u) * derivative
    target = jax.lax.stop_gradient(target)
    return Terms(u, velocity, guided, derivative, target), tokens

  def as_velocity(
      self, apply: Callable[..., Any], steps: int
  ) -> Callable[..., Any]:
    """Returns `apply` over equal steps of t, for the Euler sampler."""
    return lambda z, t, y: apply(z, t, y, jnp.full_like(t, 1 / steps))

  @property
  def group(self) -> int:
    """Rows in a row, from the first, among which the share is exact."""
    return _fraction(self.data_proportion).denominator

  @property
  def passes(self) -> float:
    """Passes of the network for the target; the product counts as two."""
    moving = 1 - float(_fraction(self.data_proportion))
    guided = (self.omega, self.kappa) != (1, 0)
    return 2 * moving + guided + bool(self.kappa) * moving

  def _guided(self, apply, u, z, velocity, draw):
    """Returns v_g, twice: the direction of du/dt is the same.

    Rows without a label are not guided.
    """
    if (self.omega, self.kappa) == (1, 0):
      return velocity, velocity
    null = self._unconditional(apply, z, draw)
    mixed = self.omega * velocity + (1 - self.omega - self.kappa) * null
    if self.kappa:
      mixed += self.kappa * self._conditional(apply, u, z, draw)
    low, high = (jnp.float32(bound) for bound in self.interval)
    inside = (low <= draw.t) & (draw.t <= high) & (draw.y != self.null_label)
    guided = jnp.where(_like(inside, z), mixed, velocity)
    return guided, guided

  def _unconditional(self, apply, z, draw, *given):
    """Returns u(z, t, t, null)."""
    null = jnp.full_like(draw.y, self.null_label)
    return apply(z, draw.t, null, jnp.zeros_like(draw.t), *given)[0]

  def _conditional(self, apply, u, z, draw, *given):
    """Returns u(z, t, t, y): where r = t, the prediction itself is that."""
    rows = Rows(*self._split(len(z)))
    z, t, y, *given = map(rows.pick, (z, draw.t, draw.y, *given))
    return rows.put(u, lambda: apply(z, t, y, jnp.zeros_like(t), *given)[0])

  def _derivative(self, apply, z, velocity, draw):
    """Returns du/dt along (velocity, 1, 0) in (z, t, r) where r < t, else 0."""
    rows = Rows(*self._split(len(z)))
    z, t, y, r, *given = map(
        rows.pick, (z, draw.t, draw.y, draw.r, *draw.given)
    )
    u = lambda z, t, h: apply(z, t, y, h, *given)[0].astype(jnp.float32)
    along = (rows.pick(velocity), jnp.ones_like(t), jnp.ones_like(t))
    derivative = lambda: jax.jvp(u, (z, t, t - r), along)[1]
    return rows.put(jnp.zeros_like(velocity), derivative)

  def _split(self, count):
    """Returns (rows in a group, rows of it with r < t).

    All rows where the groups do not divide evenly over the devices.
    """
    fraction = _fraction(self.data_proportion)
    if count % (fraction.denominator * self.shards):
      return 1, 1
    return fraction.denominator, fraction.denominator - fraction.numerator

  def _moves(self, count):
    """Returns which rows have r < t: the last ones of each group."""
    share = _fraction(self.data_proportion)
    return np.arange(count) % share.denominator >= share.numerator

  def _dropout(self, moves):
    """Returns the probability for each row that its label is dropped."""
    share, dropout = float(_fraction(self.data_proportion)), self.label_dropout
    still = min(1.0, dropout / share) if share else 0.0
    moving = max(0.0, dropout - share) / (1 - share) if share < 1 else 0.0
    return jnp.where(moves, moving, still)


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(MeanFlow):
  """Settings of improved MeanFlow; omega, kappa and interval have no effect.

  given: guidance [b 3], a scale and the interval low <= t <= high.

  largest: scale of the guidance in training, which is log-uniform from 1.
  """

  largest: float = 8.0

  def draw(
      self, key: jax.Array, x: Float[Array, 'b ...'], y: Int[Array, 'b']
  ) -> Draw:
    """Draws guidance as well; where r = t it has no interval."""
    k_base, k_scale, k_low, k_high = jax.random.split(key, 4)
    draw = super().draw(k_base, x, y)
    share, low, high = (
        jax.random.uniform(k, y.shape) for k in (k_scale, k_low, k_high)
    )
    moves = self._moves(len(x))
    low = jnp.where(moves, low / 2, 0)
    high = jnp.where(moves, (1 + high) / 2, 1)
    scale = self.largest**share
    return draw._replace(given=(jnp.stack([scale, low, high], axis=1),))

  def as_velocity(
      self,
      apply: Callable[..., Any],
      steps: int,
      guidance: tuple[float, float, float] = (1.0, 0.0, 1.0),
  ) -> Callable[..., Any]:
    """Returns `apply` with one guidance (scale, low, high) for all."""
    one = jnp.float32(guidance)
    return lambda z, t, y: apply(
        z, t, y, jnp.full_like(t, 1 / steps), jnp.tile(one, (len(z), 1))
    )

  @property
  def passes(self) -> float:
    """Passes of the network for the target; the product counts as two."""
    return 1 + 3 * (1 - float(_fraction(self.data_proportion)))

  def _guided(self, apply, u, z, velocity, draw):
    """Returns v_g and the network's own velocity, along which du/dt is."""
    scale, low, high = draw.given[0].T
    scale = jnp.where((low <= draw.t) & (draw.t <= high), scale, 1)
    one, zero = jnp.ones_like(scale), jnp.zeros_like(scale)
    whole = lambda scale: jnp.stack([scale, zero, one], axis=1)
    null = self._unconditional(apply, z, draw, whole(one))
    own = self._conditional(apply, u, z, draw, whole(scale))
    guided = velocity + _like(1 - 1 / scale, z) * (own - null)
    labelled = _like(draw.y != self.null_label, z)
    return jnp.where(labelled, guided, velocity), own


class Rows(NamedTuple):
  """The last `moving` rows of every `group` of a batch."""

  group: int
  moving: int

  def pick(self, x):
    """Returns those rows of x [b ...]."""
    return self._grouped(x)[:, -self.moving :].reshape(-1, *x.shape[1:])

  def put(self, x, make):
    """Returns x with those rows replaced by make(), if there are any."""
    if not self.moving:
      return x
    rows = make().astype(x.dtype).reshape(-1, self.moving, *x.shape[1:])
    kept = self._grouped(x)[:, : -self.moving]
    return jnp.concatenate([kept, rows], axis=1).reshape(x.shape)

  def _grouped(self, x):
    return x.reshape(-1, self.group, *x.shape[1:])


def _fraction(share):
  return fractions.Fraction(share).limit_denominator(LARGEST_GROUP)


def _squares(x):
  """Sums the squares of each row of x [b ...]."""
  return jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))


def _like(t, x):
  """Shapes t [b] to multiply x [b ...]."""
  return t.reshape(t.shape + (1,) * (x.ndim - 1))
