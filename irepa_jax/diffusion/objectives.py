"""Flow matching: what is drawn for a training step, and the loss given that.

  loss = mean |v_theta(x_t, t, y) - v|^2     x_t, v as in diffusion.paths

over the pixels and channels of an image, with t from a chosen distribution and
labels that become the null label now and then, for classifier-free guidance.
All randomness is in `draw`, so that `loss` is a function that can be compared
number by number.

SiT (arXiv 2401.08740). The loss has no weight; `time` decides what is seen.
JiT (arXiv 2511.13720) returns x and compares v: what the network returns and
what the loss compares are two settings, each v, x or eps. JiT's own clock has
noise at 0 and data at 1, so that its logit-normal mean of -0.8 is 0.8 here.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from irepa_jax.diffusion import paths

# Where a prediction of x or of the noise becomes a velocity, its divisor stays
# above this; JiT (arXiv 2511.13720) has 0.05 near the data.
FLOOR = 0.05
# Folded into the key of a draw for the keys of dropout, beside its three parts.
DROPOUT = 3
# Where a block drops, in the order in which it does.
PLACES = ('attn_weights', 'attn_out', 'mlp_hidden')
# Logit of t, above which t is 1 in float32; its exponential is still a number.
ALL_NOISE = 80.0


class Draw(NamedTuple):
  """The randomness of one batch.

  t: times in [0, 1]; 1 is noise.
  noise: normal, of standard deviation noise_scale, shaped as the latents.
  y: labels, some of them replaced by the null label.
  dropout: a key for each row, from which a network's dropout is drawn; or None.
  """

  t: Float[Array, 'b']
  noise: Float[Array, 'b ...']
  y: Int[Array, 'b']
  dropout: Any = None


def uniform(key, count, path, *, mean=0.0, std=1.0):
  """Draws t evenly from [0, 1); the settings of logit_normal do not apply."""
  del path, mean, std
  return jax.random.uniform(key, (count,))


def lognormal(key, count, path, *, mean=0.0, std=1.0):
  """Draws t as the released `lognormal`: logit_normal with mean 0 and std 1."""
  del mean, std
  return logit_normal(key, count, path)


def logit_normal(key, count, path, *, mean=0.0, std=1.0):
  """Draws t such that log(sigma / alpha) is normal, on any path.

  On the linear path that is logit(t). A greater mean is more noise.
  """
  normal = jax.random.normal(key, (count,))
  return path.time(jnp.exp(jnp.minimum(mean + std * normal, ALL_NOISE)))


def kept(keys, block, place, probability, shape):
  """Draws which values of an array [b ...] of a block are kept.

  A function of the key of the row, the block and the place in it alone, so
  that any mesh sees the same, and a block that is computed again does as well.
  Nothing of the size of activations is stored.

  Args:
    keys: of the rows, [b].
    block: its number; may be traced.
    place: one of PLACES.
    probability: of being kept.
    shape: of the array.
  """

  def row(key):
    key = jax.random.fold_in(key, block * len(PLACES) + PLACES.index(place))
    return jax.random.bernoulli(key, probability, shape[1:])

  return jax.vmap(row)(keys)


TIMES = {
    'uniform': uniform,
    'lognormal': lognormal,
    'logit_normal': logit_normal,
}


@dataclasses.dataclass(frozen=True)
class FlowMatching:
  """Settings of the objective.

  path: of diffusion.paths.
  time: time(key, count, path) -> t [count], see TIMES.
  prediction: what the network returns: v, x or eps.
  label_dropout: probability that a label becomes null_label; 0 is never.
  null_label: usually the number of classes.
  loss_space: what the loss compares: v, x or eps; '' is what the network
    returns.
  floor: the least divisor between two of them.
  noise_scale: standard deviation of the noise.
  dropout: whether the network is given dropout, see `kept`.
  """

  null_label: int
  path: paths.Path = paths.linear
  time: Callable[..., jax.Array] = uniform
  prediction: str = 'v'
  label_dropout: float = 0.1
  loss_space: str = ''
  floor: float = FLOOR
  noise_scale: float = 1.0
  dropout: bool = False
  # What MeanFlow has more of: rows that belong together, and passes of the
  # network that no gradient follows.
  group = 1
  passes = 0

  def draw(
      self, key: jax.Array, x: Float[Array, 'b ...'], y: Int[Array, 'b']
  ) -> Draw:
    """Draws times, noise and dropped labels for one batch."""
    k_t, k_noise, k_drop = jax.random.split(key, 3)
    dropped = jax.random.uniform(k_drop, y.shape) < self.label_dropout
    rows = None
    if self.dropout:
      k_rows = jax.random.fold_in(key, DROPOUT)
      rows = jax.vmap(lambda row: jax.random.fold_in(k_rows, row))(
          jnp.arange(len(x))
      )
    return Draw(
        self.time(k_t, len(x), self.path),
        self.noise_scale * jax.random.normal(k_noise, x.shape),
        jnp.where(dropped, jnp.asarray(self.null_label, y.dtype), y),
        rows,
    )

  def loss(
      self, apply: Callable[..., Any], x: Float[Array, 'b ...'], draw: Draw
  ) -> tuple[Float[Array, 'b'], Any]:
    """Returns the loss of each image and the tokens of the network.

    apply(x_t, t, y) -> (output, tokens); with dropout apply(x_t, t, y, keep).
    """
    x_t = paths.interpolate(x, draw.noise, draw.t, self.path)
    keep = (functools.partial(kept, draw.dropout),) if self.dropout else ()
    output, tokens = apply(x_t, draw.t, draw.y, *keep)
    error = output.astype(jnp.float32) - self.target(x, draw)
    if self.loss_space not in ('', self.prediction):
      error = error * paths.error_ratio(
          x,
          draw.t,
          self.path,
          source=self.prediction,
          target=self.loss_space,
          floor=self.floor,
      )
    return jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim))), tokens

  def measured(
      self, apply: Callable[..., Any], x: Float[Array, 'b ...'], draw: Draw
  ) -> tuple[Float[Array, 'b'], Any, dict[str, jax.Array]]:
    """Returns the same and scalars to log: none, as the loss says it all."""
    return *self.loss(apply, x, draw), {}

  def target(
      self, x: Float[Array, 'b ...'], draw: Draw
  ) -> Float[Array, 'b ...']:
    """Returns what the network should return."""
    if self.prediction == 'v':
      return paths.velocity(x, draw.noise, draw.t, self.path)
    return {'x': x, 'eps': draw.noise}[self.prediction]

  def as_velocity(
      self, apply: Callable[..., Any], steps: int | None = None
  ) -> Callable[..., Any]:
    """Returns `apply` with its output turned into a velocity, for sampling.

    With a loss space the divisor is floored as in the loss; without, as ever.

    steps: of the sampler; a velocity at one time does not depend on them.
    """
    del steps
    convert = functools.partial(paths.convert, target='v')
    if self.loss_space:
      convert = paths.floored_velocity

    def velocity(x_t, t, y):
      output, tokens = apply(x_t, t, y)
      output = output.astype(jnp.float32)
      v = convert(
          output, x_t, t, self.path, source=self.prediction, floor=self.floor
      )
      return v, tokens

    return velocity
