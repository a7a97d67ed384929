"""Batch normalisation without weights, as functions of the statistics.

  training     x <- (x - mean(x)) / sqrt(var(x) + eps), over all but channels
               running <- (1 - momentum) running + momentum (mean(x), n/(n-1) var(x))
  evaluation   x <- (x - running mean) / sqrt(running var + eps)

Ioffe and Szegedy 2015, arXiv 1502.03167, with the conventions of torch.nn:
a batch is normalised by its biased variance, and the unbiased one is kept. The
running statistics are a dict {'mean' [c], 'var' [c], 'count' []}, taken and
returned, so they are state like any other. Under jit a mean over the rows is
one over the whole batch, on any mesh.
"""

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float

Statistics = dict


def initial(channels) -> Statistics:
  """Returns the statistics before the first batch: mean 0 and variance 1."""
  return {
      'mean': jnp.zeros(channels, jnp.float32),
      'var': jnp.ones(channels, jnp.float32),
      'count': jnp.zeros((), jnp.int32),
  }


def train(
    x: Float[Array, 'b h w c'],
    running: Statistics,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    groups: int = 1,
) -> tuple[Float[Array, 'b h w c'], Statistics]:
  """Normalises a batch, float32, and returns the statistics after it.

  groups: rows in so many equal runs, each by its own statistics, as devices do
    that do not talk to each other; those of the first run are kept.
  """
  runs = x.astype(jnp.float32)
  runs = runs.reshape(groups, x.shape[0] // groups, *x.shape[1:])
  axes = (1, 2, 3)
  mean = jnp.mean(runs, axis=axes, keepdims=True)
  # The squares of what is left: E[x^2] - E[x]^2 would lose their digits.
  var = jnp.mean(jnp.square(runs - mean), axis=axes, keepdims=True)
  out = (runs - mean) / jnp.sqrt(var + eps)
  n = runs[0, ..., 0].size
  kept = lambda old, new: (1 - momentum) * old + momentum * new
  after = {
      'mean': kept(running['mean'], mean[0].reshape(-1)),
      'var': kept(running['var'], var[0].reshape(-1) * (n / (n - 1))),
      'count': running['count'] + 1,
  }
  return out.reshape(x.shape), after


def evaluate(
    x: Float[Array, 'b h w c'], running: Statistics, *, eps: float = 1e-5
) -> Float[Array, 'b h w c']:
  """Normalises by the running statistics, float32."""
  x = x.astype(jnp.float32)
  return (x - running['mean']) / jnp.sqrt(running['var'] + eps)
