"""The discriminator against outputs of the official code."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax.models import discriminator
from irepa_jax.weights import convert

pytestmark = pytest.mark.usefixtures('fast_compile')

GOLDEN = golden_files.load('repae_vae_loss')
BUFFERS = (r'.*\.running_(mean|var)$', r'.*\.num_batches_tracked$')
MODULE = discriminator.Discriminator(width=GOLDEN['meta']['ndf'])


def nhwc(x):
  return jnp.asarray(np.moveaxis(x, 1, -1))


def weights():
  state_dict = golden_files.subset(GOLDEN, 'sd')
  state_dict = {
      k.removeprefix('discriminator.'): v for k, v in state_dict.items()
  }
  state_dict.pop('logvar', None)
  return state_dict


def statistics(entries):
  read = lambda name, kind: jnp.asarray(entries[f'{name}.running_{kind}'])
  return {
      name: {
          'mean': read(name.replace('_', '.'), 'mean'),
          'var': read(name.replace('_', '.'), 'var'),
          'count': jnp.zeros((), jnp.int32),
      }
      for name in discriminator.NORMED
  }


def start():
  state_dict = weights()
  params = convert.from_torch(MODULE, state_dict, drop=BUFFERS)
  return params, statistics(state_dict)


def logits(params, *inputs, **settings):
  return MODULE.apply({'params': params}, *inputs, **settings)


def test_logits_equal_the_official_ones():
  params, running = start()
  x = nhwc(GOLDEN['inputs'])
  for train, name in ((True, 'train'), (False, 'eval')):
    made, _ = logits(params, x, running, train=train)
    stored = nhwc(GOLDEN[f'disc_logits_{name}'])
    np.testing.assert_allclose(made, stored, rtol=1e-4, atol=2e-5)


def test_its_loss_gradients_and_statistics_equal_the_official_ones():
  params, running = start()
  real, fake = (nhwc(GOLDEN[k]) for k in ('inputs', 'reconstructions'))
  _, running = logits(params, fake, running)  # of the autoencoder's pass
  check_statistics(running, 'step0/bn_after_generator')

  def loss(params):
    of_real, after = logits(params, real, running)
    of_fake, after = logits(params, fake, after)
    return discriminator.hinge(of_real, of_fake), after

  (value, after), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      params
  )
  np.testing.assert_allclose(value, GOLDEN['step0/disc/loss'], rtol=5e-5)
  check_statistics(after, 'step0/bn_after_discriminator')
  made = convert.to_torch(MODULE, grads)
  stored = golden_files.subset(GOLDEN, 'step0/disc/grad')
  assert len(stored) == 6
  for name, expected in stored.items():
    seen = made[name.removeprefix('discriminator.')]
    limit = 2e-4 * np.abs(expected).max() + 1e-7
    assert np.abs(seen - expected).max() <= limit, name


def check_statistics(running, section):
  expected = statistics(golden_files.subset(GOLDEN, section))
  for name, entry in expected.items():
    for kind in ('mean', 'var'):
      np.testing.assert_allclose(
          running[name][kind], entry[kind], rtol=1e-5, atol=1e-6
      )


def test_hinge_loss_equals_the_official_one():
  value = discriminator.hinge(GOLDEN['hinge/real'], GOLDEN['hinge/fake'])
  np.testing.assert_allclose(value, GOLDEN['hinge/loss'], rtol=1e-6)


def test_full_size_has_the_official_keys_and_shapes():
  module = discriminator.Discriminator()
  official = golden_files.load_json('repae_discriminator_keys')['ndf64']
  shapes = convert.torch_shapes(module)
  wanted = {k: tuple(v) for k, v in official.items() if 'r_' not in k}
  wanted = {k: v for k, v in wanted.items() if 'num_' not in k}
  wanted = {k: v for k, v in wanted.items() if 'running' not in k}
  assert shapes == wanted
  assert sum(int(np.prod(s)) for s in shapes.values()) == 2_765_633
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  init = jax.eval_shape(module.init, jax.random.key(0), image, module.initial())
  out, _ = jax.eval_shape(module.apply, init, image, module.initial())
  assert out.shape == (1, 30, 30, 1)


def test_weights_start_as_the_official_ones():
  module = discriminator.Discriminator()
  x = jnp.zeros((2, 64, 64, 3))
  params = module.init(jax.random.key(0), x, module.initial())['params']
  for name in ('main_0', 'main_8', 'main_11'):
    np.testing.assert_allclose(np.std(params[name]['kernel']), 0.02, rtol=0.1)
  scale = params['main_9']['scale']
  np.testing.assert_allclose(np.mean(scale), 1, atol=0.01)
  np.testing.assert_allclose(np.std(scale), 0.02, rtol=0.2)
  # torch.nn.Conv2d: within 1 / sqrt(fan in).
  assert 0 < np.abs(params['main_0']['bias']).max() <= 1 / np.sqrt(3 * 16)
  assert 0 < np.abs(params['main_11']['bias']).max() <= 1 / np.sqrt(512 * 16)
