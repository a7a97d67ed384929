"""Samplers: from noise at t = 1 to data at t = 0, each one lax.scan.

  Euler            x <- x + dt v(x, t)
  Heun             the mean of v at both ends of the step; Euler at the last
  Euler-Maruyama   x <- x + dt (v - w/2 score) + sqrt(w |dt|) noise, w = 2t

velocity(x, t) takes the state [b ...] in float32 and one time, a float32
scalar. The state stays in float32 (float64 in the released code). Classifier-
free guidance (arXiv 2207.12598), limited to an interval of t (arXiv
2404.07724), is a wrapper around a network.

SiT (arXiv 2401.08740), ldm/samplers.py of iREPA.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
import numpy as np

from irepa_jax import errors
from irepa_jax.diffusion import paths

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
# The last step of Euler-Maruyama starts here: the score has no limit at 0.
LAST_TIME = 0.04


def euler(
    velocity: Velocity,
    x: Float[Array, 'b ...'],
    *,
    steps: int,
    path: paths.Path = paths.linear,
    key: Any = None,
) -> Float[Array, 'b ...']:
  """Integrates the velocity in equal steps of t.

  path and key are there for a call like that of euler_maruyama: an ODE needs
  neither.
  """
  del path, key

  def step(x, times):
    t, dt = times
    return x + dt * velocity(x, t), None

  times = np.linspace(1, 0, _positive(steps) + 1)
  return _scan(step, x, times[:-1], np.diff(times))


def heun(
    velocity: Velocity,
    x: Float[Array, 'b ...'],
    *,
    steps: int,
    path: paths.Path = paths.linear,
    key: Any = None,
) -> Float[Array, 'b ...']:
  """Integrates with two evaluations in every step but the last."""
  del path, key

  def step(x, times):
    t, dt, t_next, last = times
    v = velocity(x, t)
    again = held(velocity, t)
    mean = lambda: (v + again(x + dt * v, t_next)) / 2
    return x + dt * jax.lax.cond(last, lambda: v, mean), None

  times = np.linspace(1, 0, _positive(steps) + 1)
  last = np.arange(steps) == steps - 1
  return _scan(step, x, times[:-1], np.diff(times), times[1:], last)


def euler_maruyama(
    velocity: Velocity,
    x: Float[Array, 'b ...'],
    *,
    steps: int,
    path: paths.Path = paths.linear,
    noises: Float[Array, 's b ...'] | None = None,
    key: Any = None,
) -> Float[Array, 'b ...']:
  """Integrates the reverse SDE; the last step, from t = 0.04, has no noise.

  Args:
    velocity: of the ODE.
    x: noise.
    steps: evaluations of the velocity, at linspace(1, 0.04, steps).
    path: gives the score from the velocity.
    noises: standard normal, one for every step but the last; None draws it.
    key: to draw with: one, or a typed key for each image [b]; with the latter
      an image depends neither on its place nor on the others in the batch.
  """
  draw = _noise(x, _positive(steps), noises, key)

  def step(x, times):
    i, t, dt, spread = times
    v = velocity(x, t)
    score = paths.convert(v, x, t, path, source='v', target='score')
    drift = v - t * score  # w / 2 = t
    return x + dt * drift + spread * draw(i), None

  times = np.append(np.linspace(1, LAST_TIME, steps), 0)
  dt = np.diff(times)
  spread = np.sqrt(2 * times[:-1] * -dt)
  spread[-1] = 0
  return _scan(step, x, np.arange(steps), times[:-1], dt, spread)


SAMPLERS = {'euler': euler, 'heun': heun, 'euler_maruyama': euler_maruyama}


def guided(
    apply: Callable[..., Any],
    y: Int[Array, 'b'],
    *,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    ends: str = 'closed',
    null_label: int,
) -> Velocity:
  """Returns the velocity v_null + scale * (v_y - v_null) of a network.

  Args:
    apply: (x, t [b], y [b]) -> velocity, or (velocity, tokens).
    y: the class of every image.
    scale: 1 is no guidance, and one evaluation.
    interval: guided where low <= t <= high, compared in float32; elsewhere the
      network sees the classes only, at half the cost.
    ends: closed, as here, decided once for a step (ldm/samplers.py); or open as
      in JiT: low < t < high, where 0 and 1 are no bounds, decided for every
      evaluation.
    null_label: the label that stands for no class.
  """
  low, high = interval
  if not 1 <= scale < math.inf:
    raise errors.UsageError(f'guidance scale is {scale}; 1 (none) or more')
  if not 0 <= low <= high <= 1:
    raise errors.UsageError(
        f'guidance interval is {interval}; it must be 0 <= low <= high <= 1'
    )
  conditional = lambda x, t: _call(apply, x, t, y)
  if scale == 1:
    return conditional

  def both(x, t):
    # An image and its null twin stay neighbours, thus on one device.
    labels = jnp.stack([y, jnp.full_like(y, null_label)], axis=1).reshape(-1)
    v = _call(apply, jnp.repeat(x, 2, axis=0), t, labels)
    v_y, v_null = jnp.moveaxis(v.reshape(-1, 2, *x.shape[1:]), 1, 0)
    return v_null + scale * (v_y - v_null)

  return Guided(both, conditional, (low, high), ends == 'open')


@dataclasses.dataclass(frozen=True)
class Guided:
  """A velocity with guidance inside an interval of t."""

  inside: Velocity
  outside: Velocity
  interval: tuple[float, float]
  open: bool = False

  def __call__(self, x, t):
    return self.decided(t)(x, t)

  def decided(self, t) -> Velocity:
    """Returns the velocity with or without guidance, as at time t."""
    low, high = (jnp.float32(bound) for bound in self.interval)
    if self.open:
      within = ((low < t) | (low == 0)) & ((t < high) | (high == 1))
    else:
      within = (low <= t) & (t <= high)
    return lambda x, t: jax.lax.cond(within, self.inside, self.outside, x, t)


def held(velocity: Velocity, t) -> Velocity:
  """Returns the velocity whose guidance is that of time t at any time.

  Parity: in ldm/samplers.py the interval decides once in a step, by the time
  at its start, also for Heun's second evaluation. An open one (JiT) is not held.
  """
  decides = isinstance(velocity, Guided) and not velocity.open
  return velocity.decided(t) if decides else velocity


def _noise(x, steps, noises, key):
  """Returns i -> the noise of step i; that of the last step is not used."""
  if noises is not None:
    if len(noises) != steps - 1:
      raise ValueError(f'{len(noises)} noises; {steps} steps take one less')
    noises = jnp.concatenate([noises, jnp.zeros_like(x)[None]])
    return lambda i: noises[i]
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  keys = key if typed and key.ndim else jax.random.split(key, len(x))
  one = lambda key, i: jax.random.normal(
      jax.random.fold_in(key, i), x.shape[1:]
  )
  return lambda i: jax.vmap(one, (0, None))(keys, i)


def _call(apply, x, t, y):
  out = apply(x, jnp.full(len(y), t), y)
  return (out[0] if isinstance(out, tuple) else out).astype(jnp.float32)


def _scan(step, x, *columns):
  """Runs step(x, row) over the rows of host columns, floats in float32."""
  rows = tuple(
      jnp.asarray(c, jnp.float32) if c.dtype == np.float64 else jnp.asarray(c)
      for c in columns
  )
  return jax.lax.scan(step, x.astype(jnp.float32), rows)[0]


def _positive(steps):
  if steps < 1:
    raise errors.UsageError(f'steps is {steps}; 1 or more')
  return steps
