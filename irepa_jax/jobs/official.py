"""Checkpoints of the official trainers, as states of ours and back.

An official file is a dict of `model`, `ema` (state dicts), `opt` (the state of
AdamW, moments by the position of a parameter), `args` and `steps`. A plain
state dict, as the SiT release has it, is taken for both model and average.
Those of REPA-E, which hold more: official_end_to_end.
"""

import contextlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irepa_jax import build
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.checkpoints import manager
from irepa_jax.distributed import sharding
from irepa_jax.jobs import official_end_to_end
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup
from irepa_jax.jobs import train
from irepa_jax.models import autoencoders
from irepa_jax.runs import directory
from irepa_jax.weights import convert
from irepa_jax.weights import files

MOMENTS = {'mu': 'exp_avg', 'nu': 'exp_avg_sq'}


def import_(file, config, workdir, *, latent_statistics=''):
  """Makes a run directory of an official checkpoint.

  Args:
    file: path or hub id.
    config: of the experiment that it continues.
    workdir: new.
    latent_statistics: official file, where the autoencoder has none published.
  """
  content = files.read(files.fetch(file))
  mesh = sharding.make_mesh(allow_subset=True)
  built = build.experiment(config)
  if double_output(sections(content)[0]):
    built = built._replace(
        model=built.model.clone(out_channels=2 * built.model.channels)
    )
  layout = official_end_to_end.to_state if config.end_to_end else to_state
  state, missing = layout(built, config, content)
  shapes = setup.abstract(built, config, mesh).state
  meta = _meta(config, built, latent_statistics)
  with contextlib.ExitStack() as stack:
    stack.enter_context(
        directory.open_(
            workdir,
            config.to_dict(),
            state_bytes=manager.state_bytes(shapes),
        )
    )
    directory.write_config(workdir, config.to_dict())
    saved = train.open_checkpoints(config, workdir)
    stack.callback(saved.close)
    step = int(state.step)
    saved.save(step, sharding.put(state, sharding.of(shapes)), meta)
  print(f'{workdir}: step {step}')
  for part in missing:
    print(f'not in the file: {part}')


def export(workdir, out, *, ema=0, step=None):
  """Writes a run in the official layout; OUT ends in .pt or .safetensors.

  ema: which average, from 0; step: of the checkpoint, None is the newest.
  """
  run = saved_run.open_(workdir)
  saved_run.check_ema(run, ema)
  read = _end_to_end if run.config.end_to_end else _plain
  content = read(run, ema, step, json.loads(run.config.to_json()))
  if str(out).endswith('.safetensors'):
    files.write_safetensors(out, content['ema'])
  else:
    files.write_torch(out, content)
  print(f'{out}: step {content["steps"]}, {len(content["ema"])} arrays')


def _plain(run, ema, step, args):
  mesh = sharding.make_mesh(allow_subset=True)
  average, meta = saved_run.load(run, mesh, ema=ema, step=step)
  params, _ = saved_run.load_params(run, mesh, step=meta['step'])
  return from_state(run.built, params, average, steps=meta['step'], args=args)


def _end_to_end(run, ema, step, args):
  """Reads the whole state: such a file holds the optimisers as well."""
  mesh = sharding.make_mesh(allow_subset=True)
  shapes = setup.abstract(run.built, run.config, mesh).state
  saved = train.open_checkpoints(run.config, run.workdir)
  with contextlib.closing(saved):
    found = saved.restore(shapes, step)
  if found is None:
    raise errors.CheckpointError(f'no checkpoint under {run.checkpoints}')
  return official_end_to_end.from_state(
      run.built, run.config, found[0], ema=ema, args=args
  )


def sections(content):
  """Returns (model, ema, opt or None, steps) of a file that was read."""
  if all(isinstance(v, np.ndarray) for v in content.values()):
    return content, content, None, 0
  found = [content[k] for k in ('model', 'ema') if k in content]
  if not found:
    raise errors.DataError(
        f'the file holds {sorted(map(str, content))[:6]}; neither a state dict'
        ' nor a checkpoint with `model` or `ema`'
    )
  steps = content.get('steps', content.get('step', 0))
  return found[0], found[-1], content.get('opt'), int(steps)


def double_output(state_dict):
  """Whether the final layer returns twice the channels (the SiT release)."""
  pixels = state_dict['x_embedder.proj.weight'].shape[1:]
  return len(state_dict['final_layer.linear.bias']) == 2 * int(np.prod(pixels))


def looks_like(state_dict):
  """Describes a SiT by its state dict: 'SiT-B/2 (12 blocks, 768 wide)'."""
  blocks = {
      int(m[1]) for k in state_dict if (m := re.match(r'blocks\.(\d+)\.', k))
  }
  weight = state_dict.get('x_embedder.proj.weight')
  if not blocks or weight is None:
    return 'no diffusion transformer'
  depth, (width, _, patch, _) = len(blocks), weight.shape
  names = [
      f'SiT-{size}/{patch}'
      for size, fields in models.SIZES.items()
      if (fields['depth'], fields['width']) == (depth, width)
  ]
  return f'{(names or ["a SiT"])[0]} ({depth} blocks, {width} wide)'


def to_state(built, config, content):
  """Converts a file into (TrainState on the host, what was left out).

  Raises DataError where the file holds another architecture.
  """
  model, ema, opt, steps = sections(content)
  params, average = (_params(built, config, part) for part in (model, ema))
  state = jax.eval_shape(
      lambda: setup.init_state(built, config, jax.random.key(0))
  )
  missing = []
  params, average = (
      _with_projector(built, config, tree, missing)
      for tree in (params, average)
  )
  zeros = lambda tree: jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), tree)
  optimiser = zeros(state.opt_state)
  if opt:
    optimiser = optax.tree_utils.tree_set(
        optimiser, **_moments(built, model, opt, params)
    )
  else:
    missing.append('the moments of AdamW, which start from zero')
  return (
      state._replace(
          step=np.int32(steps),
          params=params,
          opt_state=optimiser,
          ema=tuple(average for _ in config.ema),
          skipped=np.int32(0),
      ),
      missing,
  )


def from_state(built, params, average, *, steps, args):
  """Returns an official checkpoint of the arrays of a run."""
  entries = lambda tree: convert.to_official(
      built.model, built.projector, jax.tree.map(np.asarray, tree)
  )
  return {
      'model': entries(params),
      'ema': entries(average),
      'args': args,
      'steps': steps,
  }


def _meta(config, built, statistics):
  """Returns the meta of an imported checkpoint: its data set is not known."""
  bias, scale = built.autoencoder.bias, built.autoencoder.scale
  if config.end_to_end:  # they are in the state
    bias, scale = (), ()
  elif statistics:
    bias, scale = autoencoders.read_statistics(statistics)
  if scale is None:
    raise errors.UsageError(
        f'the latent statistics of {config.autoencoder} are not published with'
        ' it: give --latent_statistics=FILE'
    )
  return {
      'seed': config.seed,
      'data': '',
      'autoencoder': config.autoencoder,
      'autoencoder_sha256': '',
      'bias': list(bias),
      'scale': list(scale),
      'class_names': [],
  }


def _params(built, config, state_dict):
  try:
    return convert.from_official(built.model, built.projector, state_dict)
  except errors.DataError as error:
    raise errors.DataError(
        f'the file looks like {looks_like(state_dict)}, the config has'
        f' {config.model}: {error}'
    ) from error


def _with_projector(built, config, params, missing):
  """Fills in a new projector where the file has none but the config aligns."""
  if not built.projector or params['projector']:
    return params
  note = 'the projector, which is new'
  if note not in missing:
    missing.append(note)
  key, _ = setup.keys(config)
  new = jax.tree.map(np.asarray, setup.init_params(built, key)['projector'])
  return params | {'projector': new}


def _moments(built, model, opt, params):
  """Returns mu, nu and count; parameters are numbered as in the state dict."""
  numbered = list(model)
  saved = {numbered[i]: entry for i, entry in opt['state'].items()}
  moments = {}
  for ours, theirs in MOMENTS.items():
    filled = {
        name: saved[name][theirs] if name in saved else np.zeros_like(value)
        for name, value in model.items()
    }
    tree = convert.from_official(built.model, built.projector, filled)
    if not tree['projector']:
      tree['projector'] = jax.tree.map(np.zeros_like, params['projector'])
    moments[ours] = tree
  count = max((int(entry['step']) for entry in saved.values()), default=0)
  return moments | {'count': jnp.int32(count)}
