"""The state of a training run: everything that a step changes."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
CLIP_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


class TrainState(NamedTuple):
  """One pytree, so that it is donated, sharded and saved as a whole.

  step: [] int32, finished steps, which is also the position in the data.
  params: {'model': ..., 'projector': ...}, float32.
  opt_state: the state of optax.
  ema: one moving average of params per decay.
  skipped: [] int32, consecutive steps left out for NaN or infinity.
  model_state: what a step moves without an optimiser, running statistics.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  ema: tuple[Params, ...]
  skipped: jax.Array
  model_state: Any = ()


def create(params, optimizer, ema_decays) -> TrainState:
  """Returns the state before the first step; averages start as copies."""
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      ema=tuple(jax.tree.map(jnp.copy, params) for _ in ema_decays),
      skipped=jnp.zeros((), jnp.int32),
  )


def learning_rate(lr, warmup_steps=0):
  """Returns lr, or rate(count) after so many updates: a linear warm-up to it."""
  if not warmup_steps:
    return lr  # no schedule, which would be a count in every checkpoint
  # The first step has a rate of lr / warmup_steps rather than zero.
  return optax.linear_schedule(lr / warmup_steps, lr, warmup_steps - 1)


def make_optimizer(
    *, lr, betas, eps, weight_decay, decayed='matrices', clip=0.0, warmup_steps=0
) -> optax.GradientTransformation:
  """AdamW after clipping the global norm, as the released trainers use it.

  lr is a number, with `warmup_steps`, or a schedule(step), as of train.schedule.
  Position tables are constants that live among the parameters for the sake
  of the file layout: weight decay leaves them alone.

  decayed: 'matrices', without biases and norms, as JiT groups its parameters;
    or 'all', as torch's AdamW does over model.parameters().
  """
  adamw = optax.adamw(
      learning_rate(lr, warmup_steps),
      b1=betas[0],
      b2=betas[1],
      eps=eps,
      weight_decay=weight_decay,
      mask=MASKS[decayed],
  )
  return optax.chain(clip_by_global_norm(clip), adamw) if clip else adamw


def clip_by_global_norm(limit) -> optax.GradientTransformation:
  """Scales gradients down to a global norm of `limit`, as torch does.

  optax divides every gradient, which leaves a second copy of them all in
  memory; a product with one factor joins the update of the optimiser.
  """

  def update(updates, state, params=None):
    del params
    factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + CLIP_EPS))
    return jax.tree.map(lambda g: factor * g, updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _trained(params):
  trained = lambda path, p: 'pos_embed' not in str(path[-1])
  return jax.tree_util.tree_map_with_path(trained, params)


def _matrices(params):
  matrix = lambda p, trained: trained and p.ndim > 1
  return jax.tree.map(matrix, params, _trained(params))


MASKS = {'matrices': _matrices, 'all': _trained}
