"""Checkpoints of the official trainers, as states of ours and back.

An official file is a dict of `model`, `ema` (state dicts), `opt` (the state of
AdamW, moments by the position of a parameter), `args` and `steps`. That of JiT
has two averages, `model_ema1` and `model_ema2`, `optimizer` and `epoch`, and
the prefix `net.` before every name. A plain state dict, as the SiT release has
it, is taken for both model and average. The official MeanFlow writes checkpoints
of flax, which weights.flax_files turns into the same layout; they lack the
position table, which is a constant. Those of REPA-E hold more:
official_end_to_end.
"""

import contextlib
import functools
import json
import math
import re
from typing import Any
from typing import NamedTuple

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
from irepa_jax.models import just_image
from irepa_jax.models import layers
from irepa_jax.names import places
from irepa_jax.runs import directory
from irepa_jax.weights import adamw_state
from irepa_jax.weights import convert
from irepa_jax.weights import files
from irepa_jax.weights import state_dicts

JIT_AVERAGES = ('model_ema1', 'model_ema2')
AVERAGES = ('ema', *JIT_AVERAGES)
JIT_PREFIX = 'net.'


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
  if double_output(sections(content).model):
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

  A .pt of JiT holds both averages.

  ema: which one else, from 0.
  step: of the checkpoint; None is the newest.
  """
  places.try_file(out)
  run = saved_run.open_(workdir)
  saved_run.check_ema(run, ema)
  whole = not str(out).endswith('.safetensors')
  read = _end_to_end if run.config.end_to_end else _plain
  args = json.loads(run.config.to_json())
  content = read(run, ema, step, args, whole)
  if whole:
    files.write_torch(out, content)
  else:
    name = next(name for name in AVERAGES if name in content)
    files.write_safetensors(out, content[name])
  print(f'{out}: step {content["steps"]}, {len(content["model"])} arrays')


def _plain(run, ema, step, args, whole):
  mesh = sharding.make_mesh(allow_subset=True)
  average, meta = saved_run.load(run, mesh, ema=ema, step=step)
  averages = [average]
  if whole and is_jit(run.built):
    averages = [
        saved_run.load(run, mesh, ema=i, step=meta['step'])[0]
        for i in range(len(run.config.ema))
    ]
  params, _ = saved_run.load_params(run, mesh, step=meta['step'])
  return from_state(
      run.built, params, averages, steps=meta['step'], args=args
  )


def _end_to_end(run, ema, step, args, whole):
  """Reads the whole state: such a file holds the optimisers as well."""
  del whole
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


class Sections(NamedTuple):
  """What a file holds."""

  model: dict[str, Any]  # a state dict, by the names of the network
  averages: tuple[dict[str, Any], ...]  # one or more
  opt: dict[str, Any] | None  # state of AdamW
  numbered: list[str]  # the parameters in the order of `opt`
  steps: int


def sections(content, batch_size=0):
  """Returns the Sections of a file that was read.

  What is None counts as absent. Raises DataError for a file of another kind.
  batch_size: of the run, for files that count epochs (of ImageNet) alone.
  """
  content = state_dicts.mapping(content)
  if not any(name in content for name in ('model', *AVERAGES)):
    plain = _named(state_dicts.arrays(content))
    return Sections(plain, (plain,), None, list(plain), 0)
  found = {
      k: _named(state_dicts.arrays(content[k], f'`{k}`'))
      for k in ('model', *AVERAGES)
      if content.get(k) is not None
  }
  if not found:
    raise errors.DataError('the model and the averages of the file are None')
  model = next(iter(found.values()))
  averages = tuple(v for k, v in found.items() if k in AVERAGES) or (model,)
  opt, numbered = content.get('opt'), list(model)
  if content.get('optimizer') is not None:
    opt, numbered = content['optimizer'], _by_decay(model)
  return Sections(
      model, averages, opt, numbered, _steps(content, opt, numbered, batch_size)
  )


def _steps(content, opt, numbered, batch_size):
  """Returns the step of a file: stated, or of its optimiser, or its epochs."""
  steps = content.get('steps', content.get('step'))
  if steps is not None:
    return state_dicts.whole_number(steps, '`steps`')
  if opt is not None:
    saved = adamw_state.numbered(opt, numbered)
    return max((entry['step'] for entry in saved.values()), default=0)
  epoch = build.IMAGENET // batch_size if batch_size else 0
  epochs = content.get('epoch')
  if epochs is None:
    return 0
  return state_dicts.whole_number(epochs, '`epoch`') * epoch


def _named(state_dict):
  """Takes the prefix of JiT away."""
  return {k.removeprefix(JIT_PREFIX): v for k, v in state_dict.items()}


def _by_decay(model):
  """Returns trained parameters as JiT's optimiser numbers them.

  Parity: jit/util/misc.py add_weight_decay: first those without decay.
  """
  names = [name for name in model if name != 'pos_embed']
  free = lambda name: model[name].ndim == 1 or name.endswith('.bias')
  return [n for n in names if free(n)] + [n for n in names if not free(n)]


def double_output(state_dict):
  """Whether the final layer returns twice the channels (the SiT release)."""
  patch = np.shape(state_dict.get('x_embedder.proj.weight', ()))
  bias = np.shape(state_dict.get('final_layer.linear.bias', ()))
  return len(patch) == 4 and bias == (2 * math.prod(patch[1:]),)


def looks_like(state_dict):
  """Describes a model by its state dict: 'SiT-B/2 (12 blocks, 768 wide)'."""
  blocks = {
      int(m[1]) for k in state_dict if (m := re.match(r'blocks\.(\d+)\.', k))
  }
  embed = lambda name: state_dict.get(f'x_embedder.{name}.weight')
  kind = 'SiT' if embed('proj') is not None else 'JiT'
  first = embed('proj') if kind == 'SiT' else embed('proj1')
  last = embed('proj') if kind == 'SiT' else embed('proj2')
  whole = blocks and first is not None and last is not None
  if not whole or first.ndim != 4 or last.ndim != 4:
    return 'no diffusion transformer'
  depth, width, patch = len(blocks), len(last), first.shape[2]
  names = [
      f'{kind}-{size}/{patch}'
      for size, fields in models.FAMILIES[kind].sizes.items()
      if (fields['depth'], fields['width']) == (depth, width)
  ]
  return f'{(names or [f"a {kind}"])[0]} ({depth} blocks, {width} wide)'


def to_state(built, config, content):
  """Converts a file into (TrainState on the host, what was left out).

  Raises DataError where the file holds another architecture.
  """
  file = sections(content, config.batch_size)
  filled = functools.partial(_with_positions, built.model)
  file = file._replace(
      model=filled(file.model), averages=tuple(map(filled, file.averages))
  )
  state = jax.eval_shape(
      lambda: setup.init_state(built, config, jax.random.key(0))
  )
  missing = []
  if file.averages[0] is file.model:
    missing.append('the moving average, which starts as the model')
  params, *averages = (
      _with_projector(built, config, _params(built, config, part), missing)
      for part in (file.model, *file.averages[: len(config.ema)])
  )
  # A file with fewer averages than the run gives its last one again.
  averages += averages[-1:] * (len(config.ema) - len(averages))
  zeros = lambda tree: jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), tree)
  optimiser = zeros(state.opt_state)
  if file.opt is not None:
    optimiser = optax.tree_utils.tree_set(
        optimiser, **_moments(built, file, params)
    )
  else:
    missing.append('the moments of AdamW, which start from zero')
  return (
      state._replace(
          step=np.int32(file.steps),
          params=params,
          opt_state=optimiser,
          ema=tuple(averages),
          skipped=np.int32(0),
      ),
      missing,
  )


def from_state(built, params, averages, *, steps, args):
  """Returns an official checkpoint of the arrays of a run.

  averages: all of them, for JiT; else the one to export.
  """
  entries = lambda tree: convert.to_official(
      built.model, built.projector, jax.tree.map(np.asarray, tree)
  )
  if not is_jit(built):
    return {
        'model': entries(params),
        'ema': entries(averages[0]),
        'args': args,
        'steps': steps,
    }
  # A run with one average gives it twice.
  trees = (params, averages[0], averages[min(1, len(averages) - 1)])
  names = ('model', *JIT_AVERAGES)
  epoch = max(build.IMAGENET // args['batch_size'], 1)
  return {
      name: {JIT_PREFIX + k: v for k, v in entries(tree).items()}
      for name, tree in zip(names, trees, strict=True)
  } | {'args': args, 'epoch': steps // epoch, 'steps': steps}


def is_jit(built):
  """Whether the model is one of JiT, whose files have two averages."""
  return isinstance(built.model, just_image.JiT)


def _meta(config, built, statistics):
  """Returns the meta of an imported checkpoint: its data set is not known."""
  bias, scale = built.autoencoder.bias, built.autoencoder.scale
  if config.end_to_end:  # they are in the state
    bias, scale = (), ()
  elif statistics:
    channels = built.autoencoder.channels
    bias, scale = autoencoders.read_statistics(statistics, channels)
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


def _with_positions(module, state_dict):
  """Fills in the position table, which files of MeanFlow do not hold."""
  if 'pos_embed' in state_dict or 'h_embedder.mlp.0.bias' not in state_dict:
    return state_dict
  table = layers.sincos_2d(module.width, module.size // module.patch)
  return {**state_dict, 'pos_embed': table[None]}


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


def _moments(built, file, params):
  """Returns mu, nu and count; parameters are numbered as in the file."""
  saved = adamw_state.numbered(file.opt, file.numbered)
  moments = {}
  for ours, theirs in adamw_state.MOMENTS.items():
    filled = {
        name: saved[name][theirs] if name in saved else np.zeros_like(value)
        for name, value in file.model.items()
    }
    tree = convert.from_official(built.model, built.projector, filled)
    if not tree['projector']:
      tree['projector'] = jax.tree.map(np.zeros_like, params['projector'])
    moments[ours] = tree
  count = max((entry['step'] for entry in saved.values()), default=0)
  return moments | {'count': jnp.int32(count)}
