"""Learning rates against the released schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.train import schedule
from irepa_jax.train import state as states

EPOCH = 100  # steps


@pytest.mark.parametrize('kind', ['constant', 'cosine'])
def test_rates_as_released(golden, kind):
  oracle = golden('jit_lr_schedule')
  meta = oracle['meta']
  rate = schedule.make(
      meta['lr'],
      warmup=meta['warmup_epochs'] * EPOCH,
      from_zero=True,
      decay=meta['epochs'] * EPOCH if kind == 'cosine' else 0,
      low=meta['min_lr'],
  )
  found = rate(jnp.asarray(oracle['epochs'] * EPOCH))
  # float32 against float64; near its end 1 + cos cancels.
  np.testing.assert_allclose(
      found, oracle[f'lr/{kind}'], rtol=2e-7, atol=1e-7 * meta['lr']
  )


def test_the_warmup_of_sit_starts_above_zero():
  rate = schedule.make(1.0, warmup=4)
  np.testing.assert_allclose(rate(jnp.arange(6)), [0.25, 0.5, 0.75, 1, 1, 1])


def test_a_first_rate_of_zero_moves_the_moments_alone():
  optimizer = states.make_optimizer(
      lr=schedule.make(0.1, warmup=5, from_zero=True),
      betas=(0.9, 0.95),
      eps=1e-8,
      weight_decay=0.0,
  )
  params = {'w': jnp.ones((2, 2))}
  with jax.numpy_dtype_promotion('standard'):
    updates, state = optimizer.update(params, optimizer.init(params), params)
  assert not updates['w'].any()
  assert state[0].mu['w'].all() and state[0].nu['w'].all()
