"""Makes golden/timm_512.npz: tokens of timm's models at 512 pixels.

  python tests/encoders/timm_oracle.py     (needs torch and timm)

The weights are those of the small official models in tests/golden, whose tokens
are known at 256 pixels only. timm has the same networks under other names; its
own loader would resize position tables by another kernel, so they are resized
here, by torch: Perception Encoders bilinearly, MoCo v3 as the released code
does, from 14 x 14 to 16 x 16 and then to 32 x 32, bicubic with antialias.
"""

import functools
import pathlib
import re
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import golden_files  # noqa: E402
import oracles  # noqa: E402

GRID, EVERY = (32, 32), 8  # tokens kept: 0, 8, 16 ...
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# golden file: patch, class tokens, has layer scale
PE = {
    'enc_pe_core_l_cls': (14, True, False),
    'enc_pe_core_g_nocls': (14, False, False),
    'enc_pe_lang_l_cls_ls': (14, True, True),
    'enc_pe_spatial_b16_cls': (16, True, False),
}
MOCO = 'enc_mocov3'
CUBIC = dict(mode='bicubic', antialias=True)
RENAMES = (
    (r'^conv1\.', 'patch_embed.proj.'),
    (r'^class_embedding$', 'cls_token'),
    (r'^positional_embedding$', 'pos_embed'),
    (r'^ln_pre\.', 'norm_pre.'),
    (r'^transformer\.resblocks\.(\d+)\.', r'blocks.\1.'),
    (r'attn\.in_proj_', 'attn.qkv.'),
    (r'attn\.out_proj\.', 'attn.proj.'),
    (r'\.ln_([12])\.', r'.norm\1.'),
    (r'\.ls_([12])\.gamma$', r'.gamma_\1'),
    (r'mlp\.c_fc\.', 'mlp.fc1.'),
    (r'mlp\.c_proj\.', 'mlp.fc2.'),
    (r'^module\.base_encoder\.', ''),
)
DROPPED = r'^(proj$|attn_pool\.|ln_post\.)'


def weights(file, stops, **kernel):
  """Returns the weights under timm's names, the table resized to the last."""
  out = {}
  for key, value in oracles.weights(file).items():
    if re.search(DROPPED, key):
      continue
    for pattern, name in RENAMES:
      key = re.sub(pattern, name, key)
    out[key] = torch.tensor(value)
  table = out['pos_embed'].reshape(-1, out['pos_embed'].shape[-1])
  side = int(len(table) ** 0.5)
  first, rest = table[: len(table) - side**2], table[-(side**2) :]
  rest = rest.T.reshape(1, -1, side, side)
  for stop in stops:
    rest = functional.interpolate(rest, stop, **kernel)
  out['pos_embed'] = torch.cat([first, rest.flatten(2)[0].T])[None]
  if 'cls_token' in out:
    out['cls_token'] = out['cls_token'].reshape(1, 1, -1)
  return out


def pixels(side, mean_std):
  """Returns the image [1 3 side side] as the released code feeds it."""
  x = torch.tensor(oracles.large_images()[:1]).permute(0, 3, 1, 2) / 255
  if side != x.shape[-1]:
    x = functional.interpolate(x, side, mode='bilinear')
  mean, std = (torch.tensor(v)[:, None, None] for v in mean_std)
  return (x - mean) / std


def pe(file):
  """Returns tokens of a Perception Encoder, before its last norm."""
  from timm.models import eva

  patch, class_token, scaled = PE[file]
  state_dict = weights(file, [GRID], mode='bilinear')
  network = eva.Eva(
      img_size=32 * patch,
      patch_size=patch,
      embed_dim=32,
      depth=2,
      num_heads=2,
      mlp_ratio=state_dict['blocks.0.mlp.fc1.weight'].shape[0] / 32 + 1e-6,
      num_classes=0,
      global_pool='',
      attn_type='rope',
      class_token=class_token,
      use_pre_transformer_norm=True,
      use_post_transformer_norm=False,
      use_fc_norm=False,
      use_rot_pos_emb=True,
      ref_feat_shape=GRID,
      rope_grid_offset=float(class_token),
      rope_grid_indexing='xy',
      init_values=0.1 if scaled else None,
      norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
  ).eval()
  network.load_state_dict(state_dict)
  return network.forward_features(pixels(32 * patch, HALF))[:, class_token:]


def mocov3():
  """Returns tokens of MoCo v3, normed."""
  from timm.models import vision_transformer

  network = vision_transformer.VisionTransformer(
      img_size=512, patch_size=16, embed_dim=32, depth=2, num_heads=2,
      num_classes=0,
  ).eval()  # fmt: skip
  network.load_state_dict(weights(MOCO, [(16, 16), GRID], **CUBIC))
  return network.forward_features(pixels(512, IMAGENET))[:, 1:]


@torch.no_grad()
def main():
  tokens = {file: pe(file) for file in PE} | {MOCO: mocov3()}
  arrays = {k: v[0, ::EVERY].numpy() for k, v in tokens.items()}
  np.savez_compressed(golden_files.FOLDER / 'timm_512.npz', **arrays)
  for name, array in arrays.items():
    print(name, array.shape, f'scale {np.abs(array).max():.2f}')


if __name__ == '__main__':
  main()
