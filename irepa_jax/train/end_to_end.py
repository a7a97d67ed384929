"""One step of REPA-E: autoencoder, discriminator and model learn together.

  1  autoencoder    |x - x'| + LPIPS + KL + adversarial + alignment, the last
                    through the model as it stands: weights and statistics fixed
  2  discriminator  hinge loss on the images x and the reconstructions x'
  3  model          denoising and alignment, on latents that are stopped

REPA-E, arXiv 2504.10483. Who learns from a loss is which argument is
differentiated; all three see the weights of before the step. One draw of times
and noise serves both alignments. Latents are normalised by statistics that are
state: pass 1 by the running ones, pass 3 by those of the batch, after which the
running ones move. A step of which any loss or gradient is not finite is left
out as a whole.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from irepa_jax.train import state as states

# Optimisers, and the parameters of each.
GROUPS = {
    'model': ('model', 'projector'),
    'vae': ('vae',),
    'discriminator': ('discriminator',),
}


class Parts(NamedTuple):
  """The functions that a step is made of; build_end_to_end chooses them.

  images(batch) -> x [b H W 3] in [-1, 1].
  targets(batch, frozen) -> tuple of [b n d], normalised target tokens.
  draw(key, batch) -> (normal noise of the posterior [b h w c], Draw); Draw.y has
    labels dropped, which pass 1 does not.
  reconstruct(vae, x, noise) -> (z [b h w c], x' [b H W 3], KL [b]).
  perceptual(frozen, x, x') -> [b]; None: without LPIPS.
  discriminate(discriminator, statistics, x) -> (logits, statistics after);
    None: without discriminator.
  hinge(logits of x, logits of x') -> [].
  evaluate(z, statistics) -> normalised latents.
  train(z, statistics) -> (normalised latents, statistics after).
  diffusion(params, x, draw) -> (loss [b], tokens [b n d]).
  align(params, tokens, targets) -> [], weighted, for the model.
  align_vae(params, tokens, targets) -> [], before its weight in `weights`.
  optimizers: by the names of GROUPS.
  ema: decays.
  weights: of the losses of the autoencoder.
  discriminator_start: the first step, from 0, with an adversarial loss.
  diffusion_start: the first step in which the model learns and aligns.
  freeze_vae_from: the first step in which the autoencoder rests; 0 is never.
  """

  images: Callable[..., Any]
  targets: Callable[..., Any]
  draw: Callable[..., Any]
  reconstruct: Callable[..., Any]
  perceptual: Callable[..., Any] | None
  discriminate: Callable[..., Any] | None
  hinge: Callable[..., Any]
  evaluate: Callable[..., Any]
  train: Callable[..., Any]
  diffusion: Callable[..., Any]
  align: Callable[..., Any]
  align_vae: Callable[..., Any]
  optimizers: dict[str, optax.GradientTransformation]
  ema: tuple[float, ...]
  weights: dict[str, float]
  discriminator_start: int = 0
  diffusion_start: int = 0
  freeze_vae_from: int = 0


class Inputs(NamedTuple):
  """What all passes of a step see."""

  x: jax.Array  # images [b H W 3] in [-1, 1]
  y: jax.Array  # labels, none dropped
  noise: jax.Array  # of the posterior
  draw: Any  # times, noise and labels of the diffusion
  targets: tuple[jax.Array, ...]
  frozen: Any


class Learned(NamedTuple):
  """What a pass has found out: figures for the log, and gradients by group."""

  metrics: dict[str, jax.Array]
  grads: dict[str, Any]


def make_step(parts: Parts):
  """Returns step(state, batch, frozen, key) -> (state, metrics)."""

  def step(state, batch, frozen, key):
    inputs = _inputs(parts, state, batch, frozen, key)
    awake = _until(state.step, parts.freeze_vae_from)
    learning = _since(state.step, parts.diffusion_start)
    given = lambda *passes: [functools.partial(p, parts) for p in passes]
    z, disc_bn, first = _when(
        awake, *given(_autoencoder, _asleep), state, inputs
    )
    x, bn = _when(awake, *given(_by_batch, _by_running), state, z)
    third = _when(learning, *given(_model, _idle(_model)), state, inputs, x)
    grads = third.grads | first.grads
    metrics = third.metrics | first.metrics | _spread(z)
    # Not a choice between two states: that would copy the whole old one.
    state = jax.lax.cond(
        _finite(metrics),
        functools.partial(_update, parts, {'model': learning}, awake),
        _left_out,
        state,
        grads,
        {'bn': bn, 'disc_bn': disc_bn},
    )
    return state, metrics | {'skipped': state.skipped}

  return step


def create(params, statistics, optimizers, ema_decays) -> states.TrainState:
  """Returns the state before the first step; averages start as copies.

  params: {'model', 'projector', 'vae'} and, with one, 'discriminator'.
  statistics: {'bn', 'disc_bn'}, of models.batch_norm.
  """
  averaged = lambda: jax.tree.map(jnp.copy, _averaged(params, statistics))
  return states.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state={
          name: optimizer.init(_of(name, params))
          for name, optimizer in optimizers.items()
      },
      ema=tuple(averaged() for _ in ema_decays),
      skipped=jnp.zeros((), jnp.int32),
      model_state=statistics,
  )


def _inputs(parts, state, batch, frozen, key):
  noise, draw = parts.draw(jax.random.fold_in(key, state.step), batch)
  targets = parts.targets(batch, frozen)
  x = parts.images(batch)
  return Inputs(x, batch['label'], noise, draw, targets, frozen)


# The passes -------------------------------------------------------------------


def _autoencoder(parts, state, inputs):
  """Passes 1 and 2; returns (z, statistics of the discriminator, Learned)."""
  loss = functools.partial(_vae_loss, parts, state, inputs)
  vae = {'vae': state.params['vae']}
  gradient = jax.grad(loss, has_aux=True)(vae)
  # What pass 1 has stored for its gradient dies before the next one starts.
  grads, (z, made, disc_bn, metrics) = jax.lax.optimization_barrier(gradient)
  metrics = metrics | {'vae/grad_norm': optax.tree.norm(grads)}
  found = Learned(metrics, {'vae': grads})
  if parts.discriminate:
    disc_bn, second = _discriminator(parts, state, inputs.x, made, disc_bn)
    found = Learned(found.metrics | second.metrics, found.grads | second.grads)
  return jax.lax.optimization_barrier((z, disc_bn, found))


def _vae_loss(parts, state, inputs, vae):
  z, made, kl = parts.reconstruct(vae['vae'], inputs.x, inputs.noise)
  disc_bn = state.model_state['disc_bn']
  losses = {'l1': jnp.mean(jnp.abs(inputs.x - made)), 'kl': jnp.mean(kl)}
  if parts.perceptual:
    distance = parts.perceptual(inputs.frozen, inputs.x, made)
    losses['lpips'] = jnp.mean(distance)
  if parts.discriminate:
    started = _since(state.step, parts.discriminator_start)
    logits, disc_bn = _judged(parts, state, disc_bn, made, started)
    losses['adversarial'] = _counted(started, -jnp.mean(logits))
  if inputs.targets:
    started = _since(state.step, parts.diffusion_start)
    alignment = _vae_alignment(parts, state, inputs, z)
    losses['alignment'] = _counted(started, alignment)
  total = sum(parts.weights[name] * value for name, value in losses.items())
  metrics = {f'vae/{name}': value for name, value in losses.items()}
  return total, (z, made, disc_bn, metrics | {'vae/loss': total})


def _judged(parts, state, disc_bn, made, started):
  """Returns (logits, statistics after): those move once the loss counts."""
  weights = state.params['discriminator']
  logits, after = parts.discriminate(weights, disc_bn, made)
  if started is not True:
    keep = lambda new, old: jnp.where(started, new, old)
    after = jax.tree.map(keep, after, disc_bn)
  return logits, after


def _vae_alignment(parts, state, inputs, z):
  """Alignment through the model as it stands, of labels that are all there."""
  x = parts.evaluate(z, state.model_state['bn'])
  draw = inputs.draw._replace(y=inputs.y)
  _, tokens = parts.diffusion(state.params, x, draw)
  return parts.align_vae(state.params, tokens, inputs.targets)


def _discriminator(parts, state, x, made, disc_bn):
  """Returns (statistics after the real and the made batch, Learned)."""
  started = _since(state.step, parts.discriminator_start)

  def loss(params):
    weights = params['discriminator']
    real, after = parts.discriminate(weights, disc_bn, x)
    fake, after = parts.discriminate(weights, after, made)
    means = {'real': jnp.mean(real), 'fake': jnp.mean(fake)}
    total = _counted(started, parts.hinge(real, fake))
    return total, (after, means | {'loss': total})

  params = _of('discriminator', state.params)
  grads, (after, metrics) = jax.grad(loss, has_aux=True)(params)
  metrics['grad_norm'] = optax.tree.norm(grads)
  metrics = {f'discriminator/{name}': v for name, v in metrics.items()}
  return after, Learned(metrics, {'discriminator': grads})


def _asleep(parts, state, inputs):
  """What _autoencoder returns once the autoencoder rests: latents alone."""
  _, disc_bn, found = _idle(_autoencoder)(parts, state, inputs)
  del disc_bn
  z, _, _ = parts.reconstruct(state.params['vae'], inputs.x, inputs.noise)
  return z, state.model_state['disc_bn'], found


def _by_batch(parts, state, z):
  return parts.train(z, state.model_state['bn'])


def _by_running(parts, state, z):
  running = state.model_state['bn']
  return parts.evaluate(z, running), running


def _model(parts, state, inputs, x):
  """Pass 3, on latents that are an argument: no gradient goes further."""

  def loss(params):
    losses, tokens = parts.diffusion(params, x, inputs.draw)
    diffusion = jnp.mean(losses)
    align = parts.align(params, tokens, inputs.targets)
    metrics = {'diffusion': diffusion, 'alignment': align}
    return diffusion + align, metrics | {'loss': diffusion + align}

  grads, metrics = jax.grad(loss, has_aux=True)(_of('model', state.params))
  return Learned(
      metrics | {'grad_norm': optax.tree.norm(grads)}, {'model': grads}
  )


def _spread(z):
  """How the latents spread: a collapse shows as a falling share in space."""
  within = jnp.mean(jnp.var(z, axis=(1, 2)))
  return {
      'latents/std': jnp.sqrt(jnp.mean(jnp.var(z, axis=(0, 1, 2)))),
      'latents/std_in_space': jnp.sqrt(within),
  }


# What follows from the passes ---------------------------------------------------


def _finite(metrics):
  """Whether every loss and every gradient's norm is a finite number."""
  return jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))


def _update(parts, learning, awake, state, grads, model_state):
  """Moves every group that learns, then the averages of the model."""
  params, opt_state = {}, {}
  for name, optimizer in parts.optimizers.items():
    moved, opt_state[name] = _when(
        learning.get(name, awake),
        functools.partial(_moved, optimizer),
        lambda grads, held, params: (params, held),
        grads[name],
        state.opt_state[name],
        _of(name, state.params),
    )
    params |= moved
  now = _averaged(params, model_state)
  average = lambda decay, tree: jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, tree, now
  )
  return states.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      ema=tuple(map(average, parts.ema, state.ema)),
      skipped=jnp.zeros_like(state.skipped),
      model_state=model_state,
  )


def _moved(optimizer, grads, opt_state, params):
  # optax raises decay rates to the power of an integer count.
  with jax.numpy_dtype_promotion('standard'):
    updates, opt_state = optimizer.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def _left_out(state, grads, model_state):
  """Counts a step whose losses or gradients are not finite numbers."""
  del grads, model_state
  return state._replace(step=state.step + 1, skipped=state.skipped + 1)


def _averaged(params, statistics):
  """Returns what has a moving average: the model and its statistics."""
  bn = {name: statistics['bn'][name] for name in ('mean', 'var')}
  return _of('model', params) | {'bn': bn}


def _of(group, params):
  """Returns the parameters that one optimiser moves."""
  return {name: params[name] for name in GROUPS[group]}


# Phases: True where a step is always inside, else a traced boolean ---------------


def _since(step, first):
  return step >= first if first else True


def _until(step, end):
  return step < end if end else True


def _when(condition, run, otherwise, *arrays):
  """Returns run(*arrays), or otherwise(*arrays) where the condition is false."""
  if condition is True:
    return run(*arrays)
  return jax.lax.cond(condition, run, otherwise, *arrays)


def _counted(condition, value):
  """Returns the value, or zero where the condition is false."""
  return value if condition is True else jnp.where(condition, value, 0)


def _idle(run):
  """Returns a function whose results are those of `run`, all zero."""

  def zeros(*arguments):
    shapes = jax.eval_shape(lambda: run(*arguments))
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  return zeros
