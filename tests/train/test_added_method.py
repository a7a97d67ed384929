"""How a new paper is added: the worked example of docs/walk.md.

Contrastive flow matching (arXiv 2506.05350) pushes the velocity of a row away
from the target of another row of the batch:

  loss_i = |v_i - v*_i|^2 - weight * |v_i - v*_j|^2        j uniform, not i

It touches two parts, `draw` (which row repels is random) and `diffusion` (the
loss); the rest of a step stays as it is.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import golden_files
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax.diffusion import objectives
from irepa_jax.diffusion import paths
from irepa_jax.train import state as states
from irepa_jax.train import step as steps


class Draw(NamedTuple):
  """What is drawn for flow matching, and the row that repels each row."""

  flow: objectives.Draw
  negative: Any  # [b] int


@dataclasses.dataclass(frozen=True)
class Contrastive:
  """Flow matching with a repelling row; weight 0.05 is published."""

  flow: objectives.FlowMatching
  weight: float = 0.05

  def draw(self, key, x, y):
    k_flow, k_negative = jax.random.split(key)
    rows = jnp.arange(len(x))
    other = jax.random.randint(k_negative, rows.shape, 0, len(x) - 1)
    negative = other + (other >= rows).astype(other.dtype)
    return Draw(self.flow.draw(k_flow, x, y), negative)

  def measured(self, apply, x, draw):
    return *self.loss(apply, x, draw), {}  # and no scalars to log

  def loss(self, apply, x, draw):
    x_t = paths.interpolate(x, draw.flow.noise, draw.flow.t, self.flow.path)
    v, tokens = apply(x_t, draw.flow.t, draw.flow.y)
    target = self.flow.target(x, draw.flow)
    distance = lambda other: jnp.mean(jnp.square(v - other), axis=(1, 2, 3))
    repelled = distance(target[draw.negative])
    return distance(target) - self.weight * repelled, tokens


CONTRASTIVE = Contrastive(objectives.FlowMatching(null_label=10))


def test_loss_and_gradient_equal_the_official_ones():
  oracle = golden_files.subset(golden_files.load('m_multipliers'), 'cfm')
  nhwc = lambda name: jnp.asarray(np.moveaxis(oracle[name], 1, -1))
  draw = Draw(
      objectives.Draw(
          jnp.asarray(oracle['t']), nhwc('noise'), jnp.asarray(oracle['labels'])
      ),
      jnp.asarray(oracle['all/negative']),
  )

  def loss(prediction):
    apply = lambda *_: (prediction, ())
    return CONTRASTIVE.loss(apply, nhwc('x'), draw)[0]

  made = loss(nhwc('prediction'))
  np.testing.assert_allclose(made, oracle['all/loss'], rtol=2e-5)
  gradient = jax.grad(lambda p: jnp.mean(loss(p)))(nhwc('prediction'))
  wanted = np.moveaxis(oracle['all/grad_of_mean'], 1, -1)
  np.testing.assert_allclose(gradient, wanted, atol=1e-4 * abs(wanted).max())


def test_no_row_repels_itself():
  x, y = jnp.zeros((64, 4, 4, 4)), jnp.zeros(64, jnp.int32)
  negative = CONTRASTIVE.draw(jax.random.key(0), x, y).negative
  assert not np.any(negative == np.arange(64))
  assert negative.min() >= 0 and negative.max() < 64


# A network of one product, and a step around it.


def network(params):
  """Returns apply(x, t, y) -> (output, tokens)."""
  return lambda x, t, y: (
      x @ params['model']['kernel'] + t[:, None, None, None],
      x.reshape(len(x), -1, x.shape[-1]),
  )


def parts():
  """Returns steps.Parts without alignment."""
  return steps.Parts(
      latents=lambda batch, frozen, key: batch['x'],
      targets=lambda batch, frozen: (),
      draw=CONTRASTIVE.flow.draw,
      diffusion=lambda params, x, draw: CONTRASTIVE.flow.measured(
          network(params), x, draw
      ),
      align=lambda params, tokens, targets: jnp.zeros(()),
      optimizer=states.make_optimizer(
          lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip=1.0
      ),
      ema=(0.9,),
  )


def test_a_step_takes_it_in_place_of_the_objective():
  plain = parts()
  added = plain._replace(
      draw=CONTRASTIVE.draw,
      diffusion=lambda params, x, draw: CONTRASTIVE.measured(
          network(params), x, draw
      ),
  )
  kernel = jax.random.normal(jax.random.key(0), (4, 4))
  state = states.create({'model': {'kernel': kernel}}, plain.optimizer, (0.9,))
  x = jax.random.normal(jax.random.key(2), (8, 4, 4, 4))
  batch = {'x': x, 'label': jnp.arange(8, dtype=jnp.int32)}
  moved = []
  for made in (plain, added):
    step = jax.jit(steps.make_step(made))
    after, metrics = step(state, batch, (), jax.random.key(1))
    assert int(metrics['skipped']) == 0 and int(after.step) == 1
    moved.append(after.params['model']['kernel'])
  assert np.any(moved[0] != kernel) and np.any(moved[0] != moved[1])
