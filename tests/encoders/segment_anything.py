"""Small random SAM and SAM 2 of transformers, fed as the released code does.

Maps, windows and inputs have their published sizes: only channels and blocks
are fewer.
"""

import numpy as np
import torch
from torch.nn import functional
import transformers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 1024  # pixels that SAM, and SAM 2 for masks, see
# The same networks in this package's words.
SAM = dict(
    inner=32, depth=3, heads=2, global_blocks=(1,), width=256, mlp_ratio=2.0
)
TRUNK = dict(inner=16, depths=(1, 2, 3, 1), global_blocks=(4,))


def sam():
  """Returns a small random SamModel."""
  config = transformers.SamConfig(
      vision_config=dict(
          hidden_size=32,
          output_channels=256,
          num_hidden_layers=3,
          num_attention_heads=2,
          global_attn_indexes=[1],
          mlp_dim=64,
      )
  )
  return _random(transformers.SamModel(config))


def sam2():
  """Returns a small random Sam2Model."""
  trunk = transformers.Sam2HieraDetConfig(
      hidden_size=16,
      num_attention_heads=1,
      blocks_per_stage=[1, 2, 3, 1],
      embed_dim_per_stage=[16, 32, 64, 128],
      num_attention_heads_per_stage=[1, 2, 4, 8],
      window_size_per_stage=[8, 4, 14, 7],
      global_attention_blocks=[4],
      window_positional_embedding_background_size=[7, 7],
  )
  vision = transformers.Sam2VisionConfig(
      backbone_config=trunk, backbone_channel_list=[128, 64, 32, 16]
  )
  config = transformers.Sam2Config(vision_config=vision.to_dict())
  return _random(transformers.Sam2Model(config))


def _random(network):
  torch.manual_seed(0)
  with torch.no_grad():
    for name, weight in network.named_parameters():
      centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
      weight.copy_(centre + 0.07 * torch.randn_like(weight))
  return network.eval()


@torch.no_grad()
def tokens_of_sam(network, images):
  """Returns SAM's map on the grid of images uint8 [b h w 3], [b n 256]."""
  x = functional.interpolate(
      _normal(_planes(images) / 255), SIDE, mode='bicubic'
  )
  maps = network.vision_encoder(x).last_hidden_state
  grid = images.shape[1] // 16
  return _tokens(functional.interpolate(maps, grid, mode='bilinear'))


@torch.no_grad()
def tokens_of_sam2(network, images):
  """Returns the trunk's last map at twice the images' size, [b n d]."""
  x = _normal(_planes(images) / 255)
  x = functional.interpolate(x, 2 * images.shape[1], mode='bicubic')
  maps = network.vision_encoder.backbone(x).last_hidden_state
  return maps.flatten(1, 2).numpy()


@torch.no_grad()
def tokens_of_masks(network, images, points, released):
  """Returns the logits of the masks at a grid of points, [b n points**2].

  `released`: the released code gives points in pixels of the input to a
  processor that takes them for pixels of the image and scales them once more.
  """
  side = images.shape[1]
  x = functional.interpolate(
      _planes(images), SIDE, mode='bilinear', antialias=True
  )
  line = np.linspace(0, SIDE - 1, points)
  places = np.stack(np.meshgrid(line, line), -1).reshape(1, -1, 1, 2)
  if released:
    places = places * SIDE / side
  masks = network(
      pixel_values=_normal(x / 255),
      input_points=torch.tensor(places, dtype=torch.float32),
      input_labels=torch.ones(1, points**2, 1, dtype=torch.long),
      multimask_output=False,
  ).pred_masks[:, :, 0]
  return _tokens(functional.interpolate(masks, side // 16, mode='bilinear'))


def _planes(images):
  return torch.tensor(images).permute(0, 3, 1, 2)


def _normal(x):
  column = lambda v: torch.tensor(v)[:, None, None]
  return (x - column(MEAN)) / column(STD)


def _tokens(maps):
  return maps.flatten(2).swapaxes(1, 2).numpy()
