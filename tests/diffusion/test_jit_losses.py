"""JiT's loss, gradients and samples against the released code."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jit

from irepa_jax import alignment
from irepa_jax.diffusion import paths
from irepa_jax.diffusion import samplers
from irepa_jax.weights import convert

LOSSES = ('jit_loss_conv3_zscore', 'jit_loss_mlp_nonorm')
SAMPLES = golden_files.load('jit_generate')


def total_loss(params, oracle, model, projector):
  """Returns the released total loss and its parts."""
  args = oracle['meta']['args']
  x, draw = tiny_jit.drawn(oracle, args)
  losses, tokens = tiny_jit.objective(args).loss(
      tiny_jit.network(model, params), x, draw
  )
  target = jnp.asarray(oracle['enc_feats/0'])
  if gamma := oracle['meta']['zscore_alpha']:
    target = alignment.spatial_norm(target, gamma)
  align = alignment.alignment_loss(
      projector.apply({'params': params['projector']}, tokens),
      [target],
      (float(args['proj_coeff']),),
  )
  return jnp.mean(losses) + align, (jnp.mean(losses), align)


@pytest.mark.parametrize('name', LOSSES)
def test_draws_as_released(golden, name):
  oracle = golden(name)
  x, draw = tiny_jit.drawn(oracle, oracle['meta']['args'])
  np.testing.assert_allclose(1 - draw.t, oracle['t'], rtol=1e-6)
  np.testing.assert_array_equal(draw.y, oracle['labels_dropped'])
  np.testing.assert_allclose(
      paths.interpolate(x, draw.noise, draw.t),
      tiny_jit.last(oracle['z_t']),
      atol=1e-6,
  )


@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_every_gradient_as_released(golden, name):
  oracle = golden(name)
  model, projector, params = tiny_jit.build(oracle)
  loss = functools.partial(
      total_loss, oracle=oracle, model=model, projector=projector
  )
  (total, (diffusion, align)), grads = jax.jit(
      jax.value_and_grad(loss, has_aux=True)
  )(params)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
  close(diffusion, oracle['loss_dict/denoise_loss'])
  close(align, oracle['loss_dict/cosine_weighted'])
  close(total, oracle['loss_dict/total_loss'])
  found = convert.to_official(model, projector, grads)
  assert not found.pop('pos_embed').any()
  assert {f'grad/net.{k}' for k in found} == {
      k for k in oracle if k.startswith('grad/')
  }
  for key, grad in found.items():
    wanted = oracle[f'grad/net.{key}']
    limit = 1e-4 * np.abs(wanted).max() + 1e-7
    np.testing.assert_allclose(grad, wanted, atol=limit, rtol=0, err_msg=key)


@pytest.mark.parametrize('case', SAMPLES['meta']['cases'])
def test_samples_as_released(case):
  """The interval is one of 1 - t, open, and judged at every evaluation."""
  args = SAMPLES['meta']['args']
  method, *numbers = case.split('_')
  steps, scale, low, high, noise_scale = (
      float(part.lstrip('abcdefghijklmnopqrstuvwxyz')) for part in numbers
  )
  model, _, params = tiny_jit.build(SAMPLES)
  objective = tiny_jit.objective(args)

  @jax.jit
  def sample(x, y):
    velocity = samplers.guided(
        objective.as_velocity(tiny_jit.network(model, params)),
        y,
        scale=scale,
        interval=(1 - high, 1 - low),
        ends='open',
        null_label=args['class_num'],
    )
    return samplers.SAMPLERS[method](velocity, x, steps=int(steps))

  noise = noise_scale * tiny_jit.last(SAMPLES[f'{case}/draw_noise'])
  x = sample(noise, jnp.asarray(SAMPLES['y'], jnp.int32))
  wanted = tiny_jit.last(SAMPLES[case])
  np.testing.assert_allclose(x, wanted, atol=1e-5 * np.abs(wanted).max())
