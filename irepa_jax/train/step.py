"""One training step: diffusion and alignment in a single jitted function.

  loss = mean |v - v_theta(x_t, t, y)|^2 + coefficient * alignment

The frozen encoder runs inside the step (or its stored features are read), its
weights an argument like any other. A step is a pure function of the state, the
batch, the frozen weights and one key; the same key gives the same noise for
the same row on any mesh.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from irepa_jax.train import state as states


class Parts(NamedTuple):
  """The functions that a step is made of; irepa_jax.build chooses them.

  latents(batch, frozen, key) -> x [b h w c], the normalised latents.
  targets(batch, frozen) -> tuple of [b n d], normalised target tokens.
  draw(key, x, y) -> Draw, all the randomness of the objective.
  diffusion(params, x, draw) -> (loss [b], tokens [b n d], scalars to log).
  align(params, tokens, targets) -> [], weighted; zero without targets.
  optimizer: optax transformation.
  ema: decays.
  group: neighbouring rows that a microbatch takes together.
  """

  latents: Callable[..., Any]
  targets: Callable[..., Any]
  draw: Callable[..., Any]
  diffusion: Callable[..., Any]
  align: Callable[..., Any]
  optimizer: optax.GradientTransformation
  ema: tuple[float, ...]
  group: int = 1


def make_step(parts: Parts, *, accumulate=1):
  """Returns step(state, batch, frozen, key) -> (state, metrics)."""

  def loss(params, x, draw, targets):
    losses, tokens, seen = parts.diffusion(params, x, draw)
    diffusion = jnp.mean(losses)
    align = parts.align(params, tokens, targets)
    told = {'diffusion': diffusion, 'alignment': align}
    return diffusion + align, told | seen

  gradient = jax.value_and_grad(loss, has_aux=True)

  def step(state, batch, frozen, key):
    k_latent, k_draw = jax.random.split(jax.random.fold_in(key, state.step))
    x = parts.latents(batch, frozen, k_latent)
    draw = parts.draw(k_draw, x, batch['label'])
    targets = parts.targets(batch, frozen)
    (total, metrics), grads = accumulated(
        gradient, accumulate, parts.group, state.params, x, draw, targets
    )
    metrics = {'loss': total, **metrics, 'grad_norm': optax.tree.norm(grads)}
    # Not a choice between two states: that would copy the whole old one.
    finite = jnp.isfinite(total) & jnp.isfinite(metrics['grad_norm'])
    state = jax.lax.cond(
        finite, functools.partial(update, parts), left_out, state, grads
    )
    return state, metrics | {'skipped': state.skipped}

  return step


def update(parts: Parts, state, grads):
  """Applies the optimiser, then moves every average: e = d e + (1 - d) p."""
  # optax raises decay rates to the power of an integer count.
  with jax.numpy_dtype_promotion('standard'):
    updates, opt_state = parts.optimizer.update(
        grads, state.opt_state, state.params
    )
  params = optax.apply_updates(state.params, updates)
  average = lambda decay, tree: jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, tree, params
  )
  ema = tuple(map(average, parts.ema, state.ema))
  return states.TrainState(
      state.step + 1, params, opt_state, ema, jnp.zeros_like(state.skipped)
  )


def left_out(state, grads):
  """Counts a step whose loss or gradient is not a finite number."""
  del grads
  return state._replace(step=state.step + 1, skipped=state.skipped + 1)


def accumulated(gradient, count, group, params, *rows):
  """Averages gradient(params, *rows) over `count` microbatches in one scan.

  Microbatch i takes groups of rows i, i + count, ... so that each stays spread
  over all devices.
  """
  if count == 1:
    return gradient(params, *rows)
  split = lambda r: jnp.swapaxes(
      r.reshape(-1, count, group, *r.shape[1:]), 0, 1
  ).reshape(count, -1, *r.shape[1:])
  micro = jax.tree.map(split, rows)
  zeros = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype),
      jax.eval_shape(gradient, params, *jax.tree.map(lambda m: m[0], micro)),
  )
  add = lambda total, m: (
      jax.tree.map(lambda a, b: a + b / count, total, gradient(params, *m)),
      None,
  )
  return jax.lax.scan(add, zeros, micro)[0]
