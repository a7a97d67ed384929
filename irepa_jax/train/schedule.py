"""Learning rates that depend on the step.

  rate = lr (step + 1) / warmup             while step < warmup, and then
  rate = low + (lr - low) (1 + cos(pi s)) / 2

with s from 0 to 1 between the end of the warm-up and the end of the decay;
without a decay the rate stays lr. JiT (arXiv 2511.13720) has lr step / warmup:
its first step moves no weight, only the moments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def make(
    lr: float, *, warmup=0, from_zero=False, decay=0, low=0.0
) -> Callable[[jax.Array], jax.Array]:
  """Returns schedule(step) -> rate, float32; steps count from 0.

  Args:
    lr: after the warm-up.
    warmup: its steps.
    from_zero: whether the rate of the first step is 0.
    decay: the step at which the rate has fallen to `low`; 0 is never.
    low: the least rate.
  """
  first = 0 if from_zero else 1

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = lr * (step + first) / max(warmup, 1)
    return jnp.where(step < warmup, rising, _falling(step))

  def _falling(step):
    if not decay:
      return jnp.full_like(step, lr)
    share = jnp.clip((step - warmup) / (decay - warmup), 0, 1)
    return low + (lr - low) / 2 * (1 + jnp.cos(jnp.pi * share))

  return schedule
