"""What a job sets up from an experiment: its arrays and its jitted step.

Arrays come as shapes that carry their shardings, then new or from files, born
where they belong.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irepa_jax import build
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.evals import generate
from irepa_jax.jobs import end_to_end
from irepa_jax.models import flops
from irepa_jax.train import state as states
from irepa_jax.train import step as steps


class Shapes(NamedTuple):
  """The arrays of a training step as shapes that carry their shardings."""

  state: states.TrainState
  batch: Any
  frozen: Any
  key: Any


def make_mesh(config, devices=None):
  """Returns the mesh that the fields of an experiment ask for.

  Raises UsageError where they do not fit the devices.
  """
  return sharding.make_mesh(
      config.mesh_data,
      config.mesh_model,
      config.mesh_replica,
      devices=devices,
      allow_subset=config.allow_subset,
  )


def abstract(built: build.Experiment, config, mesh) -> Shapes:
  """Returns the arguments of the training step without making any array."""
  init = functools.partial(init_state, built, config)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(init, key)
  frozen = frozen_shapes(built, config)
  split = functools.partial(
      sharding.tree_shardings, mesh=mesh, fsdp=config.fsdp
  )
  batch = batch_shapes(built, config)
  rows = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
  return Shapes(
      sharding.placed(state, split(state)),
      sharding.placed(batch, rows),
      sharding.placed(frozen, split(frozen)),
      sharding.placed(key, sharding.replicated(mesh)),
  )


def frozen_shapes(built: build.Experiment, config):
  """Returns the weights that run in the step and do not learn, as shapes.

  Those of the encoders; end to end those of LPIPS come last.
  """
  found = tuple(
      jax.eval_shape(encoder.init, jax.random.key(0))
      for encoder in _encoders(built, config)
  )
  if config.end_to_end:
    found += (end_to_end.lpips_shapes(built, config),)
  return found


def batch_shapes(built: build.Experiment, config):
  """Returns the arrays of a global batch, as shapes."""
  rows, size = config.batch_size, built.model.size
  moments = (rows, size, size, 2 * built.model.channels)
  shapes = {'label': jax.ShapeDtypeStruct((rows,), jnp.int32)}
  if built.autoencoder.stored:
    shapes['moments'] = jax.ShapeDtypeStruct(moments, jnp.float16)
  if stored(built, config):
    shapes['features'] = tuple(
        jax.ShapeDtypeStruct((rows, *feature_shape(e)), jnp.bfloat16)
        for e in built.encoders
    )
  if _encoders(built, config) or not built.autoencoder.stored:
    image = (rows, config.image_size, config.image_size, 3)
    shapes['image'] = jax.ShapeDtypeStruct(image, jnp.uint8)
  return shapes


def _encoders(built, config):
  """Returns the encoders that run in the step."""
  return built.encoders if config.features == 'online' else ()


def stored(built: build.Experiment, config):
  """Returns the names of the encoders whose tokens the data set holds."""
  cached = config.features == 'cached'
  return tuple(encoder.name for encoder in built.encoders if cached)


def feature_shape(encoder):
  """Returns (tokens, channels) of an encoder."""
  return encoder.grid[0] * encoder.grid[1], encoder.width


def jit_step(built: build.Experiment, config, mesh, manifest):
  """Returns the jitted step(state, batch, frozen, key); it donates the state.

  manifest: has bias and scale per channel of x = (z - bias) * scale.
  """
  if config.end_to_end:
    step = end_to_end.make_step(built, config, mesh)
  else:
    parts = build.parts(built, config, manifest.bias, manifest.scale)
    step = steps.make_step(parts, accumulate=config.accumulate)
  state = abstract(built, config, mesh).state
  return jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(sharding.of(state), sharding.replicated(mesh)),
  )


def compiled_together(step):
  """Returns the jitted step, with whose first call all processes compile it.

  They meet before they run it: of the collectives that the first run sets up
  the processes must not be 30 s apart.
  """
  made = []

  def call(*arguments):
    if not made:
      made.append(step.lower(*arguments).compile())
      processes.gather('compiled')
    return made[0](*arguments)

  return call if jax.process_count() > 1 else step


def train_flops(built: build.Experiment, config):
  """Returns the FLOPs of a training step per image: backward is twice forward."""
  total = (3 + built.objective.passes) * flops.model(built.model)
  if built.projector:
    total += 3 * flops.projectors(built.projector)
  if config.features == 'online':
    total += sum(encoder.flops for encoder in built.encoders)
  if config.end_to_end:
    total += end_to_end.train_flops(built, config)
  return total


def keys(config):
  """Returns (key of the initialisation, key of the training steps)."""
  return jax.random.split(jax.random.key(config.seed))


def init_params(built: build.Experiment, key):
  """Returns {'model', 'projector'}, float32; jit it with out_shardings."""
  k_model, k_projector = jax.random.split(key)
  params = {'model': _init(built.model, k_model), 'projector': {}}
  if built.projector:
    params['projector'] = _init(built.projector, k_projector)
  return params


def init_state(built: build.Experiment, config, key):
  """Returns the state before the first step."""
  params = init_params(built, key)
  if config.end_to_end:
    return end_to_end.init_state(
        built, config, params, jax.random.fold_in(key, 1)
    )
  return states.create(params, built.optimizer, tuple(config.ema))


def new_state(built: build.Experiment, config, shapes, key):
  """Makes the state before the first step, born with its shardings."""
  init = functools.partial(init_state, built, config)
  return jax.jit(init, out_shardings=sharding.of(shapes))(key)


def read_start(built: build.Experiment, config):
  """Reads what a new state takes from files; {} where all of it is random."""
  if config.end_to_end:
    return end_to_end.read_start(built, config)
  return {}


def started(state, start, shapes):
  """Puts what read_start has read into a new state."""
  return end_to_end.started(state, start, shapes) if start else state


def load_frozen(built: build.Experiment, config, mesh):
  """Reads the weights that run in the step and do not learn, sharded."""
  found = load_encoders(built, config, mesh)
  if config.end_to_end:
    params = end_to_end.load_lpips(built, config)
    split = sharding.tree_shardings(params, mesh, fsdp=config.fsdp)
    found += (sharding.put(params, split),)
  return found


def load_encoders(built: build.Experiment, config, mesh):
  """Reads the weights of the encoders that run in the step, sharded."""
  running = _encoders(built, config)
  if not running:  # cached features, or no encoder
    return ()
  shapes = frozen_shapes(built, config)[: len(running)]
  sources = config.encoder_weights.split(',') if config.encoder_weights else []
  sources = sources or [None] * len(running)
  loaded = tuple(
      encoder.load(source or None)
      for encoder, source in zip(running, sources, strict=True)
  )
  split = sharding.tree_shardings(shapes, mesh, fsdp=config.fsdp)
  return sharding.put(loaded, split)


def load_decoder(built: build.Experiment, config, mesh):
  """Reads the weights of the autoencoder, whole on every device."""
  params = built.autoencoder.load(config.autoencoder_weights or None)
  whole = jax.tree.map(lambda _: sharding.replicated(mesh), params)
  return sharding.put(params, whole)


def whole(params, mesh):
  """Returns weights that may be split as they are on every device of the mesh."""
  put = jax.tree.map(lambda _: sharding.replicated(mesh), params)
  return jax.jit(lambda params: params, out_shardings=put)(params)


def local(params):
  """Returns weights that are whole on every device, on this process alone."""
  return jax.tree.map(lambda x: jnp.asarray(x.addressable_data(0)), params)


def sampling_weights(built: build.Experiment, params, decoder):
  """Returns the weights of make_sample, the model's cast once to its dtype.

  Statistics of the latents among the parameters go before those of a data set.
  """
  model = generate.cast(params['model'], built.model.dtype)
  weights = {'model': model, 'decoder': decoder}
  if 'bn' in params:
    bn = params['bn']
    weights['latents'] = (bn['mean'], jax.lax.rsqrt(bn['var']))
  return weights


def _init(module, key):
  inputs = [jnp.zeros(s.shape, s.dtype) for s in module.example_inputs()]
  return module.init(key, *inputs)['params']
