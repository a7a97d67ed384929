"""Checkpoints of the released REPA-E trainer, as states of ours and back.

A file is a dict of `model`, `ema` (both with `bn.*` and `projectors.*`), `vae`,
`discriminator` (with the buffers of its normalisations), `opt`, `opt_vae`,
`opt_disc`, `args` and `steps`. An optimiser knows parameters by their number in
the order of the modules; that of the discriminator counts all of the losses:
logvar, the discriminator, and LPIPS, which does not learn.
"""

import re

import jax
import numpy as np
import optax

from irepa_jax import errors
from irepa_jax.jobs import end_to_end
from irepa_jax.jobs import setup
from irepa_jax.models import discriminator as discriminators
from irepa_jax.weights import convert

MOMENTS = {'mu': 'exp_avg', 'nu': 'exp_avg_sq'}
SECTIONS = {'model': 'opt', 'vae': 'opt_vae', 'discriminator': 'opt_disc'}
BUFFERS = {
    'bn.running_mean': 'mean',
    'bn.running_var': 'var',
    'bn.num_batches_tracked': 'count',
}
LPIPS_ARRAYS = 31  # 13 convolutions of VGG with a bias, five heads without
LOGVAR = 1  # parameters of the losses before those of the discriminator
# The order in which official modules name their parts, of all of them.
ORDER = (
    'pos_embed', 'x_embedder', 't_embedder', 'y_embedder', 'blocks',
    'projectors', 'final_layer', 'bn', 'main', 'encoder', 'decoder',
    'quant_conv', 'post_quant_conv', 'conv_in', 'down', 'mid', 'up', 'norm_out',
    'conv_out', 'block', 'block_1', 'attn', 'attn_1', 'block_2', 'downsample',
    'upsample', 'conv', 'norm', 'norm1', 'conv1', 'norm2', 'conv2',
    'nin_shortcut', 'qkv', 'q_norm', 'k_norm', 'q', 'k', 'v', 'proj_out',
    'proj', 'mlp', 'fc1', 'fc2', 'linear', 'adaLN_modulation',
    'projection_layer', 'embedding_table', 'weight', 'bias', 'running_mean',
    'running_var', 'num_batches_tracked',
)  # fmt: skip


def to_state(built, config, content):
  """Converts a file into (TrainState on the host, what was left out).

  Raises DataError where the file holds other networks.
  """
  absent = {'model', 'ema', 'vae'} - content.keys()
  if absent:
    raise errors.DataError(
        f'the file lacks {", ".join(sorted(absent))}: it is no checkpoint of'
        ' REPA-E, which a config with end_to_end continues'
    )
  shapes = jax.eval_shape(
      lambda: setup.init_state(built, config, jax.random.key(0))
  )
  params, missing = _params(built, content['model']), []
  params['vae'] = built.autoencoder.from_torch(content['vae'])
  statistics = {'bn': _statistics(content['model']), 'disc_bn': {}}
  if 'discriminator' in shapes.params:
    module = end_to_end.networks(built, config).discriminator
    if 'discriminator' not in content:
      raise errors.DataError(
          'the file has no discriminator: set config.adversarial_weight=0'
      )
    found = discriminators.from_torch(module, content['discriminator'])
    params['discriminator'] = found['discriminator']
    statistics['disc_bn'] = found['disc_bn']
  bn = _statistics(content['ema'])
  average = _params(built, content['ema'])
  average['bn'] = {name: bn[name] for name in ('mean', 'var')}
  optimisers = {
      name: _optimiser(built, config, name, held, content, missing)
      for name, held in shapes.opt_state.items()
  }
  state = shapes._replace(
      step=np.int32(content.get('steps', 0)),
      params=params,
      opt_state=optimisers,
      ema=tuple(average for _ in config.ema),
      skipped=np.int32(0),
      model_state=statistics,
  )
  return state, missing


def from_state(built, config, state, *, ema, args):
  """Returns an official checkpoint of a state; ema: which average, from 0."""
  state = jax.tree.map(np.asarray, state)
  params, bn = state.params, state.model_state['bn']
  content = {
      'model': _sections(built, config, params)['model'] | _buffers(bn),
      'ema': _sections(built, config, params | state.ema[ema])['model']
      | _buffers(state.ema[ema]['bn'] | {'count': bn['count']}),
      'vae': _sections(built, config, params)['vae'],
      'args': args,
      'steps': int(state.step),
  }
  if 'discriminator' in params:
    module = end_to_end.networks(built, config).discriminator
    content['discriminator'] = in_order(
        discriminators.to_torch(
            module, params['discriminator'], state.model_state['disc_bn']
        )
    )
  for name, section in SECTIONS.items():
    if name in state.opt_state:
      rate = {'model': config.lr, 'vae': config.vae_lr}
      content[section] = _official_optimiser(
          built, config, name, state, rate.get(name, config.discriminator_lr)
      )
  return content


def in_order(entries):
  """Returns a state dict in the order of the official modules."""
  place = lambda part: (int(part), -1) if part.isdigit() else (
      -1, ORDER.index(part)
  )
  key = lambda name: [place(part) for part in name.split('.')]
  return {name: entries[name] for name in sorted(entries, key=key)}


def _sections(built, config, params):
  """Returns weights without buffers by section, each in official order."""
  model = convert.to_official(built.model, built.projector, params)
  if config.projector == 'mlp':
    # As the trainer of REPA-E has it, before iREPA gave the layers a name.
    model = {k.replace('.projection_layer', ''): v for k, v in model.items()}
  found = {
      'model': model,
      'vae': convert.to_torch(built.autoencoder.module, params['vae']),
  }
  if 'discriminator' in params:
    module = end_to_end.networks(built, config).discriminator
    found['discriminator'] = convert.to_torch(module, params['discriminator'])
  return {name: in_order(entries) for name, entries in found.items()}


def _buffers(bn):
  """Returns running statistics under their official names."""
  return {
      official: np.asarray(bn[name], np.int64 if name == 'count' else None)
      for official, name in BUFFERS.items()
  }


def _statistics(state_dict):
  if not BUFFERS.keys() <= state_dict.keys():
    raise errors.DataError(
        'the file has no statistics of the latents (bn.running_mean ...)'
    )
  kinds = {'mean': np.float32, 'var': np.float32, 'count': np.int32}
  return {n: kinds[n](state_dict[k]) for k, n in BUFFERS.items()}


def _params(built, state_dict):
  weights = {k: v for k, v in state_dict.items() if k not in BUFFERS}
  return convert.from_official(built.model, built.projector, weights)


def _optimiser(built, config, name, shapes, content, missing):
  """Returns the state of one optimiser, moments taken from the file."""
  held = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  opt = content.get(SECTIONS[name])
  if not opt or not opt['state']:
    missing.append(f'the moments of AdamW of the {name}, which start from zero')
    return held
  section = {
      k.removeprefix(discriminators.PREFIX): v for k, v in content[name].items()
  }
  weights = [k for k in section if not re.search(r'running_|num_batches', k)]
  first = min(opt['state']) if name == 'discriminator' else 0
  saved = {weights[i - first]: v for i, v in opt['state'].items()}
  trees = {
      ours: _moment(built, config, name, saved, section, theirs)
      for ours, theirs in MOMENTS.items()
  }
  count = np.int32(max(int(entry['step']) for entry in saved.values()))
  return optax.tree_utils.tree_set(held, **trees, count=count)


def _moment(built, config, name, saved, section, theirs):
  """Returns one kind of moments as a tree like the parameters of a group."""
  filled = {
      k: saved[k][theirs] if k in saved else np.zeros_like(v)
      for k, v in section.items()
      if k not in BUFFERS
  }
  if name == 'model':
    return convert.from_official(built.model, built.projector, filled)
  if name == 'vae':
    return {name: convert.from_torch(built.autoencoder.module, filled)}
  module = end_to_end.networks(built, config).discriminator
  return {name: discriminators.from_torch(module, filled)[name]}


def _official_optimiser(built, config, name, state, rate):
  """Returns one optimiser as torch.optim.AdamW saves itself."""
  find = lambda key: optax.tree_utils.tree_get(state.opt_state[name], key)
  moments = {
      theirs: _sections(built, config, state.params | find(ours))[name]
      for ours, theirs in MOMENTS.items()
  }
  first, last = (LOGVAR, LPIPS_ARRAYS) if name == 'discriminator' else (0, 0)
  count = np.asarray(find('count'), np.float32)
  names = list(moments['exp_avg'])
  entries = {
      first + i: {'step': count} | {k: v[n] for k, v in moments.items()}
      for i, n in enumerate(names)
  }
  group = {
      'lr': rate,
      'betas': list(config.betas),
      'eps': config.adam_eps,
      'weight_decay': config.weight_decay,
      'params': list(range(first + len(names) + last)),
  }
  return {'state': entries, 'param_groups': [group]}
