"""Running a stack of equal blocks, without a say in how weights are kept.

Weights stay one tree per block under their official names. They are cast to the
compute dtype in every step anyway; stacking the casts feeds a scan over layers
at almost no cost, and the gradient unstacks by itself. So scan or unrolled,
what is recomputed, and where weights are gathered are choices of a run.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irepa_jax.models import forms


class Plan(NamedTuple):
  """How a stack runs; every plan gives the same numbers."""

  scan: bool = False  # compiles once for all blocks
  remat: str = 'none'  # none, names, full
  gather: Callable | None = None  # weights of one block, just before their use
  constrain: Callable | None = None  # activations [b n d] between blocks
  saved: tuple[str, ...] = forms.CPU.saved  # what remat 'names' stores


def run(block, weights, x, c, plan):
  """Applies block(weights, x, c) for each of `weights` in turn.

  weights: a sequence of equal trees, already cast (layers.cast).
  """

  def body(x, one):
    one = plan.gather(one) if plan.gather else one
    return pin(block(one, x, c), plan), None

  if plan.remat != 'none':
    # Outside a scan the compiler would merge both computations again.
    names = plan.saved if plan.remat == 'names' else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    body = jax.checkpoint(body, policy=policy, prevent_cse=not plan.scan)
  if plan.scan and weights:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    return jax.lax.scan(body, x, stacked)[0]
  for one in weights:
    x, _ = body(x, one)
  return x


def pin(x, plan):
  """Applies the plan's constraint on activations, if there is one."""
  return plan.constrain(x) if plan.constrain else x


def gathered(module, params):
  """Casts and gathers the matrices outside blocks, as `run` does with blocks.

  module: has `dtype` and `gather`, of Plan.
  """
  if not module.gather:
    return params
  cast = lambda w: w.astype(module.dtype) if w.ndim > 1 else w
  outer = {k: v for k, v in params.items() if not k.startswith('blocks_')}
  return params | module.gather(jax.tree.map(cast, outer))
