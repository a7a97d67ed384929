"""Images by number: the same for any batch, mesh and number of processes."""

import functools
import hashlib
import itertools
import math
import re

import jax
import jax.numpy as jnp
import multihost
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.diffusion import samplers
from irepa_jax.distributed import sharding
from irepa_jax.evals import generate

SHAPE = (4, 4, 2)
COUNT = 21


def sample(params, noise, y, keys):
  """Stands in for a model: an SDE towards a colour for each class."""

  def velocity(x, t):
    del t
    return x - params * y[:, None, None, None].astype(jnp.float32) / 10

  x = samplers.euler_maruyama(velocity, noise, steps=4, key=keys)
  return jnp.clip(jnp.concatenate([x, x[..., :1]], axis=-1), -1, 1)


def start(params, noise, y, keys):
  """Shows the noise that an image starts from."""
  del params, y, keys
  return jnp.clip(jnp.concatenate([noise, noise[..., :1]], axis=-1), -1, 1)


@functools.cache  # of one compilation
def renderer(sample=sample, *, mesh=None, **settings):
  settings = dict(seed=0, num_classes=10, shape=SHAPE) | settings
  return generate.make_renderer(sample, mesh=mesh, **settings)


def images(numbers=range(COUNT), *, batch_size=8, mesh=None, **settings):
  """Returns (numbers, labels, images) of a whole job."""
  render = renderer(mesh=mesh, **settings)
  job = generate.generate(
      render, jnp.float32(1), numbers, batch_size=batch_size, mesh=mesh
  )
  return generate.Part(*map(np.concatenate, zip(*job, strict=True)))


def test_every_number_once_and_in_order():
  part = images()
  np.testing.assert_array_equal(part.numbers, np.arange(COUNT))
  assert part.images.shape == (COUNT, 4, 4, 3)
  assert part.images.dtype == np.uint8


@pytest.mark.parametrize('batch_size', [5, 64])
def test_the_batch_does_not_matter(batch_size):
  for one, other in zip(images(), images(batch_size=batch_size), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('shape', [(8, 1), (2, 4)])
def test_the_mesh_does_not_matter(shape):
  mesh = sharding.make_mesh(*shape)
  for one, other in zip(images(), images(mesh=mesh), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_part_of_the_numbers_gives_those_images():
  whole, some = images(), images([3, 17, 20])
  np.testing.assert_array_equal(some.numbers, [3, 17, 20])
  np.testing.assert_array_equal(some.images, whole.images[[3, 17, 20]])
  np.testing.assert_array_equal(some.labels, whole.labels[[3, 17, 20]])


def test_the_seed_matters():
  one, other = (images(sample=start, seed=seed).images for seed in (0, 1))
  assert (one != other).mean() > 0.5


def test_balanced_and_given_labels():
  labels = lambda chosen: images(sample=start, labels=chosen).labels
  np.testing.assert_array_equal(labels('balanced'), np.arange(COUNT) % 10)
  np.testing.assert_array_equal(labels((7, 3)), [7, 3] * 10 + [7])


def test_random_labels_cover_the_classes():
  labels = images(range(400), sample=start).labels
  counts = np.bincount(labels, minlength=10)
  assert len(counts) == 10 and counts.min() > 15


@pytest.mark.parametrize('labels', ['even', (3, 10), (-1,), ()])
def test_wrong_labels(labels):
  with pytest.raises(errors.UsageError, match='labels are'):
    images(labels=labels)


def test_a_batch_that_the_mesh_cannot_split():
  with pytest.raises(errors.UsageError, match='batch_size=9'):
    images(batch_size=9, mesh=sharding.make_mesh())


def test_images_that_are_not_finite():
  render = renderer(lambda params, noise, y, keys: noise / 0)
  with pytest.raises(errors.DataError, match='not finite'):
    next(generate.generate(render, {}, range(2), batch_size=2))


def test_poll_ends_early():
  answers = iter([False, False, True])
  render = renderer()
  job = generate.generate(
      render,
      jnp.float32(1),
      range(COUNT),
      batch_size=8,
      poll=lambda: next(answers),
  )
  assert sum(len(part.numbers) for part in job) == 16


class Logged:
  """A batch that tells when it is asked for, and when it is read."""

  def __init__(self, render, events):
    self.render, self.events, self.count = render, events, 0

  def __call__(self, params, numbers):
    made, i = self.render(params, numbers), self.count
    self.count += 1
    self.events.append(f'compute {i}')
    return made[0]._replace(images=Sent(made[0].images, i, self.events)), made[1]


class Sent:
  """An array whose transfers are told."""

  def __init__(self, array, i, events):
    self.array, self.i, self.events = array, i, events

  def copy_to_host_async(self):
    self.events.append(f'send {self.i}')
    self.array.copy_to_host_async()

  def __getattr__(self, name):
    self.events.append(f'read {self.i}')
    return getattr(self.array, name)


def test_images_leave_while_the_next_batch_is_computed():
  events = []
  render = Logged(renderer(), events)
  job = generate.generate(render, jnp.float32(1), range(COUNT), batch_size=8)
  for i, _ in enumerate(job):
    events.append(f'use {i}')
  order = [event for event, _ in itertools.groupby(events)]
  assert order == [
      'compute 0', 'send 0', 'compute 1', 'send 1',
      'read 0', 'use 0', 'compute 2', 'send 2',
      'read 1', 'use 1', 'read 2', 'use 2',
  ]  # fmt: skip


def test_no_numbers_give_no_images():
  assert not list(generate.generate(renderer(), {}, [], batch_size=4))


def test_truncation_is_the_released_and_rounding_the_nearest():
  grey = jnp.array([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0])
  np.testing.assert_array_equal(
      generate.truncate(grey), [0, 0, 127, 254, 255, 255]
  )
  np.testing.assert_array_equal(
      generate.nearest(grey), [0, 0, 128, 255, 255, 255]
  )


def sit_sample(
    model, params, noise, y, keys, *, name='euler_maruyama', interval=(0.0, 1.0)
):
  velocity = samplers.guided(
      functools.partial(model.apply, {'params': params}),
      y,
      scale=2.0,
      interval=interval,
      null_label=10,
  )
  x = samplers.SAMPLERS[name](velocity, noise, steps=5, key=keys)
  return x[..., :3]


@pytest.fixture(scope='module')
def sit():
  """A SiT in bfloat16 with weights that let every input matter."""
  model = models.create(
      'SiT-S/2',
      width=16,
      depth=1,
      heads=2,
      num_classes=10,
      align_depth=1,
      size=4,
      dtype=jnp.bfloat16,
  )
  inputs = [jnp.zeros(s.shape, s.dtype) for s in model.example_inputs()]
  with jax.numpy_dtype_promotion('standard'):
    params = jax.jit(model.init)(jax.random.key(0), *inputs)['params']
  render = renderer(functools.partial(sit_sample, model), shape=(4, 4, 4))
  return model, jax.tree.map(lambda w: w + 0.02, params), render


def sit_images(sit, params, batch_size):
  job = generate.generate(sit[2], params, range(6), batch_size=batch_size)
  with jax.numpy_dtype_promotion('standard'):  # jax.nn mixes dtypes
    return np.concatenate([part.images for part in job])


def test_weights_cast_once_change_nothing(sit):
  light = generate.cast(sit[1], jnp.bfloat16)
  assert {w.dtype for w in jax.tree.leaves(light)} == {jnp.dtype('bfloat16')}
  np.testing.assert_array_equal(
      sit_images(sit, light, 6), sit_images(sit, sit[1], 6)
  )


def test_a_transformer_in_other_batches_rounds_alike(sit):
  # The noise is equal bit for bit; products of another shape may round
  # differently, which bfloat16 turns into a grey level here and there.
  one, other = (sit_images(sit, sit[1], size).astype(int) for size in (6, 4))
  assert np.abs(one - other).max() <= 4
  assert np.abs(one - other).mean() < 0.1


@pytest.mark.parametrize(
    'name, devices, evaluations',
    [('euler', 1, 1), ('euler_maruyama', 4, 1), ('heun', 1, 2)],
)
def test_the_compiled_program_guides_at_half_cost_outside_the_interval(
    sit, name, devices, evaluations
):
  """Of the compiler's program: branches, one with half the products."""
  mesh = sharding.make_mesh(devices, 1, allow_subset=True)
  sample = functools.partial(
      sit_sample, sit[0], name=name, interval=(0.2, 0.6)
  )
  render = renderer(sample, shape=(4, 4, 4), mesh=mesh)
  with jax.numpy_dtype_promotion('standard'):
    program = render.lower(sit[1], jnp.arange(8)).compile().as_text()
  outside, inside = products(program, 'branch_0'), products(program, 'branch_1')
  assert len(outside) > 8 and [2 * size for size in outside] == inside
  assert products(program, '') == sorted(outside + inside)
  assert len(re.findall(r' conditional\(', program)) >= evaluations


def products(program, branch):
  """Returns the sizes of all matrix products that a branch of HLO computes."""
  pattern = r'= \w+\[([\d,]*)\][^=]* dot\(.*op_name="([^"]*)"'
  found = re.findall(pattern, program)
  return sorted(
      math.prod(map(int, shape.split(',')))
      for shape, name in found
      if name.rpartition('/cond/')[2].startswith(branch)
  )


def test_two_processes_make_the_same_images():
  script = '''
  import hashlib
  import test_generate
  from irepa_jax.distributed import sharding
  part = test_generate.images(mesh=sharding.make_mesh())
  digest = [hashlib.sha256(i.tobytes()).hexdigest() for i in part.images]
  result(digests=dict(zip(map(str, part.numbers), digest)))
  '''
  script = 'sys.path.insert(0, "tests/evals")\n' + script.replace('\n  ', '\n')
  results = multihost.run(script, processes=2, devices=4)
  found = [lines[0]['digests'] for lines in results]
  assert not set(found[0]) & set(found[1]) and all(found)
  whole = images()
  assert found[0] | found[1] == {
      str(number): hashlib.sha256(image.tobytes()).hexdigest()
      for number, image in zip(whole.numbers, whole.images, strict=True)
  }
