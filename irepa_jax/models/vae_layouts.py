"""The two layouts of a KL autoencoder's weight file: CompVis and diffusers.

diffusers counts the levels of the decoder from the deepest and has linear
layers for the 1x1 convolutions of attention. Files of runs hold more than the
autoencoder, or hold it one level down.
"""

import re

from irepa_jax import errors
from irepa_jax.models import vae
from irepa_jax.weights import state_dicts

# What a file may hold beside the autoencoder: losses and optimiser averages.
FOREIGN = (r'^loss\.', r'^model_ema\.')
WRAPPERS = ('state_dict', 'vae')


def official_names(state_dict, levels):
  """Returns the entries under the official (CompVis) names and shapes.

  Accepts the official layout, alone or below 'state_dict' or (REPA-E runs)
  'vae', and the diffusers AutoencoderKL layout with either kind of attention.
  """
  for wrapper in WRAPPERS:
    state_dict = state_dicts.mapping(state_dict).get(wrapper, state_dict)
  state_dict = state_dicts.arrays(state_dict)
  if not any('_blocks.' in key for key in state_dict):
    return dict(state_dict)
  renamed = {}
  for key, value in state_dict.items():
    name = key
    for pattern, replacement in diffusers_names(levels):
      name = re.sub(pattern, replacement, name)
    if name in renamed:
      raise errors.DataError(f'two tensors for {name!r}, one of them {key!r}')
    linear = re.search(r'\.attn.*\.(q|k|v|proj_out)\.weight$', name)
    if linear and value.ndim == 2:
      value = value[:, :, None, None]  # a linear layer is a 1x1 convolution
    renamed[name] = value
  return renamed


def diffusers_names(levels):
  """Returns the renames from diffusers, which counts up levels from below."""
  return (
      (r'\.down_blocks\.', '.down.'),
      *(
          (rf'\.up_blocks\.{i}\.', f'.up.{levels - 1 - i}.')
          for i in range(levels)
      ),
      (r'\.(down|up)samplers\.0\.', r'.\1sample.'),
      (r'\.mid_block\.resnets\.0\.', '.mid.block_1.'),
      (r'\.mid_block\.resnets\.1\.', '.mid.block_2.'),
      (r'\.mid_block\.attentions\.0\.', '.mid.attn_1.'),
      (r'\.resnets\.', '.block.'),
      (r'\.attentions\.', '.attn.'),
      (r'\.conv_shortcut\.', '.nin_shortcut.'),
      (r'\.conv_norm_out\.', '.norm_out.'),
      (r'\.group_norm\.', '.norm.'),
      (r'\.(to_q|query)\.', '.q.'),
      (r'\.(to_k|key)\.', '.k.'),
      (r'\.(to_v|value)\.', '.v.'),
      (r'\.(to_out\.0|proj_attn)\.', '.proj_out.'),
  )


def to_diffusers(entries, levels):
  """Returns an official state dict in the layout of diffusers' AutoencoderKL."""
  renamed = {}
  for name, value in entries.items():
    attention = re.search(r'\.attn[._]\d+\.(q|k|v|proj_out)\.', name)
    for pattern, replacement in to_diffusers_names(levels):
      name = re.sub(pattern, replacement, name)
    squeeze = attention and value.ndim == 4  # a 1x1 convolution is linear
    renamed[name] = value[:, :, 0, 0] if squeeze else value
  return renamed


def to_diffusers_names(levels):
  """Returns the renames to diffusers, the inverse of diffusers_names."""
  inner = (
      (r'\.attn[._](\d+)\.norm\.', r'.attn.\1.group_norm.'),
      (r'\.attn[._](\d+)\.(q|k|v)\.', r'.attn.\1.to_\2.'),
      (r'\.attn[._](\d+)\.proj_out\.', r'.attn.\1.to_out.0.'),
      (r'\.nin_shortcut\.', '.conv_shortcut.'),
      (r'\.norm_out\.', '.conv_norm_out.'),
      (r'\.(down|up)sample\.', r'.\1samplers.0.'),
  )
  outer = (
      (r'\.mid\.block_1\.', '.mid_block.resnets.0.'),
      (r'\.mid\.block_2\.', '.mid_block.resnets.1.'),
      (r'\.mid\.attn\.1\.', '.mid_block.attentions.0.'),
      (r'\.block\.', '.resnets.'),
      (r'\.attn\.', '.attentions.'),
      (r'\.down\.(\d+)\.', r'.down_blocks.\1.'),
      *(
          (rf'\.up\.{i}\.', f'.up_blocks.{levels - 1 - i}.')
          for i in range(levels)
      ),
  )
  return (*inner, *outer)


def diffusers_config(module, mean, std):
  """Returns config.json of a module in the layout of diffusers.

  mean, std: of the latents, per channel.
  """
  levels = range(len(module.multipliers))
  kinds = [('Attn' if i in module.attention_levels else '') for i in levels]
  return {
      '_class_name': 'AutoencoderKL',
      'act_fn': 'silu',
      'block_out_channels': [module.width * m for m in module.multipliers],
      'down_block_types': [f'{kind}DownEncoderBlock2D' for kind in kinds],
      'in_channels': 3,
      'latent_channels': module.channels,
      'latents_mean': list(mean),
      'latents_std': list(std),
      'layers_per_block': module.blocks,
      'norm_num_groups': vae.GROUPS,
      'out_channels': 3,
      'scaling_factor': 1.0,
      'up_block_types': [f'{kind}UpDecoderBlock2D' for kind in kinds[::-1]],
  }
