"""Times a training step: img/s, MFU, memory, compilation, and where time goes.

The arrays are random, so neither data nor weights are needed; where config.data
is a prepared data set, its records/s are measured as well.
"""

import functools
import pathlib
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import build
from irepa_jax import check
from irepa_jax import errors
from irepa_jax.data import pipeline
from irepa_jax.distributed import sharding
from irepa_jax.jobs import setup
from irepa_jax.train import step as training

SIDES = {'cpu': 1024}  # of the measured matrix product; elsewhere:
SIDE = 8192
PRODUCTS = 8
INPUT_BATCHES = 20


class Statistics(NamedTuple):
  """Stands in for the manifest of a data set."""

  bias: tuple[float, ...]
  scale: tuple[float, ...]


def benchmark(config, *, steps=20, against=''):
  """Returns the figures of a configuration on the devices at hand.

  steps: timed, after compilation; against: 'torch' alternates with PyTorch.
  """
  check.config(config)
  mesh = setup.make_mesh(config)
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  built = build.experiment(config, mesh)
  timed = Ours(built, config, mesh)
  if not against:
    return timed.report([timed.once() for _ in range(steps)]) | records(config)
  seconds = alternate(timed, config, built, steps)
  theirs = statistics.median(seconds['torch'])
  return timed.report(seconds['ours']) | {
      'torch_ms': round(1e3 * theirs, 2),
      'ratio': round(statistics.median(seconds['ours']) / theirs, 3),
  }


class Ours:
  """Our step on random arrays; the state goes from step to step."""

  def __init__(self, built, config, mesh):
    self._built, self._config, self._mesh = built, config, mesh
    shapes = setup.abstract(built, config, mesh)
    k_init, self._key = setup.keys(config)
    self._state = setup.new_state(built, config, shapes.state, k_init)
    self._batch = random_batch(shapes.batch, config.num_classes)
    self._frozen = frozen_weights(built, config, shapes.frozen, k_init)
    ones = (1.0,) * built.model.channels
    self._statistics = Statistics((0.0,) * len(ones), ones)
    step = setup.jit_step(built, config, mesh, self._statistics)
    start = time.perf_counter()
    self._step = step.lower(
        self._state, self._batch, self._frozen, self._key
    ).compile()
    self._compile_s = time.perf_counter() - start
    self.once()

  def once(self):
    """Returns the seconds of one step, waiting for its end."""
    start = time.perf_counter()
    self._state, metrics = self._step(
        self._state, self._batch, self._frozen, self._key
    )
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - start

  def report(self, seconds):
    """Returns the figures of a benchmark as a dict."""
    config, step_s = self._config, statistics.median(seconds)
    rate = config.batch_size / step_s
    achieved = rate * setup.train_flops(self._built, config) / self._mesh.size
    peak = matrix_peak(config.dtype)
    memory = self._step.memory_analysis()
    return {
        'model': config.model,
        'preset': config.preset,
        'dtype': config.dtype,
        'encoder': config.encoder if config.features == 'online' else 'cached',
        'device': self._mesh.devices.flat[0].device_kind,
        'devices': self._mesh.size,
        'batch_size': config.batch_size,
        'step_ms': round(1e3 * step_s, 2),
        'img_per_s': round(rate, 2),
        'tflops_per_device': round(achieved / 1e12, 3),
        'measured_peak_tflops': round(peak / 1e12, 3),
        'mfu': round(achieved / peak, 3),
        'compile_s': round(self._compile_s, 1),
        'arguments_mib': memory.argument_size_in_bytes >> 20,
        'temporaries_mib': memory.temp_size_in_bytes >> 20,
    } | self._shares(step_s)

  def _shares(self, step_s):
    """Times the parts of a step alone, as shares of their sum.

    `sum_over_step` says how much longer they take alone than in one program.
    """
    made = build.parts(self._built, self._config, *self._statistics)
    batch, frozen, key = self._batch, self._frozen, self._key
    params = self._state.params
    targets = jax.jit(made.targets)
    gradient = jax.jit(functools.partial(loss_gradient, made))
    update = jax.jit(functools.partial(training.update, made))
    tokens = targets(batch, frozen)
    grads = gradient(params, batch, tokens, key)
    parts = {
        'encoder': lambda: targets(batch, frozen),
        'forward_backward': lambda: gradient(params, batch, tokens, key),
        'optimiser_and_ema': lambda: update(self._state, grads),
    }
    seconds = {name: median_s(part) for name, part in parts.items()}
    total = sum(seconds.values())
    shares = {name: round(s / total, 3) for name, s in seconds.items()}
    return {'shares': shares, 'sum_over_step': round(total / step_s, 2)}


def loss_gradient(parts, params, batch, targets, key):
  """Returns the gradient of a step's loss for given targets."""
  k_latent, k_draw = jax.random.split(key)
  x = parts.latents(batch, (), k_latent)
  draw = parts.draw(k_draw, x, batch['label'])

  def loss(params):
    losses, tokens, _ = parts.diffusion(params, x, draw)
    return jnp.mean(losses) + parts.align(params, tokens, targets)

  return jax.grad(loss)(params)


def alternate(ours, config, built, steps):
  """Returns the seconds of alternating steps: {'ours': [...], 'torch': [...]}."""
  from irepa_jax.tools.benchmarks import pytorch

  if config.projector != 'conv' or config.features != 'cached':
    raise errors.UsageError(
        '--against=torch compares the irepa preset with stored features:'
        ' --config.features=cached'
    )
  model = built.model
  fields = ('patch', 'width', 'depth', 'heads', 'size', 'channels')
  fields += ('num_classes', 'align_depth')
  settings = {name: getattr(model, name) for name in fields}
  settings['target'] = built.encoders[0].width
  with pytorch.Process(
      settings, config.batch_size, dtype=config.dtype
  ) as theirs:
    for _ in range(3):  # compilation of the first shapes
      theirs.once()
    pairs = [(ours.once(), theirs.once()) for _ in range(steps)]
  return dict(zip(('ours', 'torch'), zip(*pairs, strict=True), strict=True))


def random_batch(shapes, num_classes):
  """Returns random arrays in the shapes of a global batch."""
  draw = np.random.default_rng(0)

  def fill(path, s):
    if 'label' in str(path):
      host = draw.integers(num_classes, size=s.shape)
    elif s.dtype == jnp.uint8:
      host = draw.integers(256, size=s.shape)
    else:
      host = draw.standard_normal(s.shape, np.float32)
    return sharding.put(host.astype(s.dtype), s.sharding)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def frozen_weights(built, config, shapes, key):
  """Returns random weights of the encoders that run in the step."""
  if config.features == 'cached':
    return ()
  init = lambda key: tuple(encoder.init(key) for encoder in built.encoders)
  return jax.jit(init, out_shardings=sharding.of(shapes))(key)


def matrix_peak(dtype):
  """Returns FLOP/s of large square matrix products on one device."""
  n = SIDES.get(jax.default_backend(), SIDE)
  a = jnp.full((n, n), 1 / n, jnp.dtype(dtype))
  # Sums in float32, as everywhere in this package.
  matmul = lambda a, b: jnp.matmul(
      a, b, preferred_element_type=jnp.float32
  ).astype(a.dtype)
  product = jax.jit(lambda a: functools.reduce(matmul, [a] * (PRODUCTS + 1)))
  return 2 * n**3 * PRODUCTS / median_s(lambda: product(a))


def median_s(function, repeats=7):
  """Returns the median seconds of a call, the first one left out."""
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[1:])


def records(config):
  """Returns records/s of the input alone, where there is a data set."""
  if not (pathlib.Path(config.data) / 'manifest.json').exists():
    return {}
  data = pipeline.load(config.data)
  batches = pipeline.batches(
      data,
      batch_size=config.batch_size,
      seed=config.seed,
      image=bool(config.encoder) and config.features == 'online',
      features=check.encoder_names(config) * (config.features == 'cached'),
      threads=config.data_threads,
  )
  next(batches)
  start = time.perf_counter()
  for _ in range(INPUT_BATCHES):
    next(batches)
  rate = INPUT_BATCHES * config.batch_size / (time.perf_counter() - start)
  batches.close()
  data.close()
  return {'records_per_s': round(rate, 1)}
