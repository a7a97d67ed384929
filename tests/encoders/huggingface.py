"""Small random models of transformers in the shape of each family.

`model(name)` is built on the published grid and saved as its files are; its
`tokens` come from the class itself, with pixels and the position table resized
by torch.
"""

import torch
from torch.nn import functional
import transformers

SIZE = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
)
TEXT = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    intermediate_size=16,
    vocab_size=8,
    max_position_embeddings=4,
)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def vit(side, patch):
  config = transformers.ViTConfig(
      **SIZE, image_size=side, patch_size=patch, layer_norm_eps=1e-6
  )
  return transformers.ViTModel(config)


def mae(side, patch):
  config = transformers.ViTMAEConfig(
      **SIZE,
      image_size=side,
      patch_size=patch,
      layer_norm_eps=1e-6,
      mask_ratio=0.0,
      decoder_hidden_size=16,
      decoder_num_hidden_layers=1,
      decoder_num_attention_heads=1,
      decoder_intermediate_size=16,
  )
  return transformers.ViTMAEForPreTraining(config)


def ijepa(side, patch):
  config = transformers.IJepaConfig(
      **SIZE, image_size=side, patch_size=patch, layer_norm_eps=1e-6
  )
  return transformers.IJepaModel(config)


def dinov2(side, patch, swiglu=False):
  config = transformers.Dinov2Config(
      **SIZE, image_size=side, patch_size=patch, use_swiglu_ffn=swiglu
  )
  return transformers.Dinov2Model(config)


def webssl(side, patch):
  return dinov2(side, patch, swiglu=True)


def dinov2_registers(side, patch):
  config = transformers.Dinov2WithRegistersConfig(
      **SIZE, image_size=side, patch_size=patch
  )
  return transformers.Dinov2WithRegistersModel(config)


def dinov3(side, patch):
  config = transformers.DINOv3ViTConfig(
      **SIZE, image_size=side, patch_size=patch, num_register_tokens=4
  )
  return transformers.DINOv3ViTModel(config)


def dinov3_gated(side, patch):
  config = transformers.DINOv3ViTConfig(
      **SIZE,
      image_size=side,
      patch_size=patch,
      num_register_tokens=4,
      use_gated_mlp=True,
      hidden_act='silu',
      query_bias=False,
      value_bias=False,
  )
  return transformers.DINOv3ViTModel(config)


def siglip(side, patch):
  vision = dict(SIZE, image_size=side, patch_size=patch)
  config = transformers.SiglipConfig(text_config=TEXT, vision_config=vision)
  return transformers.SiglipModel(config)


def clip(side, patch):
  vision = dict(SIZE, image_size=side, patch_size=patch)
  config = transformers.CLIPConfig(text_config=TEXT, vision_config=vision)
  return transformers.CLIPModel(config)


def radio(side, patch):
  config = transformers.RadioConfig(
      **SIZE,
      image_size=side,
      patch_size=patch,
      max_img_size=2048,
      num_cls_tokens=4,
      num_registers=4,
  )
  return transformers.RadioModel(config)


# name: builder, stored grid, patch, leading tokens, mean and std, resize of
# pixels and of the position table (None: the class does it itself)
CUBIC = dict(mode='bicubic')
CUBIC_AA = dict(mode='bicubic', antialias=True)
FAMILIES = {
    'dino-vit-b': (vit, 14, 16, 1, IMAGENET, CUBIC, CUBIC_AA),
    'mae-vit-l': (mae, 14, 16, 1, IMAGENET, CUBIC, CUBIC_AA),
    'jepa-vit-h': (ijepa, 16, 14, 0, IMAGENET, CUBIC, CUBIC_AA),
    'dinov2-vit-b': (dinov2, 37, 14, 1, IMAGENET, CUBIC, CUBIC_AA),
    'dinov2-vit-g': (webssl, 37, 14, 1, IMAGENET, CUBIC, CUBIC_AA),
    'dinov2mixed-vit-b': (dinov2, 37, 14, 1, IMAGENET, CUBIC, CUBIC_AA),
    'dinov2reg-vit-b': (
        dinov2_registers, 37, 14, 5, IMAGENET, CUBIC, CUBIC_AA,
    ),
    'webssl-vit-dino300m_full2b_224': (
        webssl, 16, 14, 1, IMAGENET, CUBIC, None,
    ),
    'dinov3-vit-b16': (dinov3, 14, 16, 5, IMAGENET, CUBIC, None),
    'dinov3-vit-h16plus': (dinov3_gated, 14, 16, 5, IMAGENET, CUBIC, None),
    'dinov3-vit-7b16': (dinov3_gated, 14, 16, 5, IMAGENET, CUBIC, None),
    'siglip-vit-b': (siglip, 16, 16, 0, IMAGENET, CUBIC, CUBIC_AA),
    'siglip2-vit-so400m': (siglip, 16, 16, 0, IMAGENET, CUBIC, CUBIC_AA),
    'clip-vit-L': (clip, 16, 14, 1, CLIP, CUBIC, CUBIC_AA),
    # It normalises and resizes its table by itself.
    'cradio-vit-b': (radio, 128, 16, 8, NONE, CUBIC, None),
}


def model(name):
  """Returns a random model of the family on its published grid."""
  build, grid, patch = FAMILIES[name][:3]
  torch.manual_seed(0)
  network = build(grid * patch, patch).eval()
  with torch.no_grad():
    for key, weight in network.named_parameters():
      centre = 1.0 if 'norm' in key and key.endswith('weight') else 0.0
      centre = 0.5 if 'lambda1' in key else centre
      weight.copy_(centre + 0.08 * torch.randn_like(weight))
  return network


@torch.no_grad()
def tokens(name, network, images):
  """Returns the patch tokens of uint8 images [b h w 3]."""
  build, grid, patch, leading, (mean, std), pixels, table = FAMILIES[name]
  side = images.shape[1] // 16 * patch
  x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
  x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
  if x.shape[-1] != side:
    x = functional.interpolate(x, side, **pixels)
  if table:
    weights = resized(network.state_dict(), grid, side // patch, table)
    network = build(side, patch).eval()
    network.load_state_dict(weights)
    out = run(network, x)
  else:
    out = run(network, x)
  share = 0.1 if 'mixed' in name else 0.0  # of the class token
  return ((1 - share) * out[:, leading:] + share * out[:, :1]).numpy()


def run(network, x):
  """Returns the last tokens, where the released code takes them."""
  network = getattr(network, 'vision_model', network)
  if isinstance(network, transformers.ViTMAEForPreTraining):
    kept = {}
    network.vit.layernorm.register_forward_hook(
        lambda module, args, out: kept.update(tokens=args[0])
    )
    order = torch.arange((x.shape[-1] // 16) ** 2).float()[None]
    network.vit(x, noise=order.expand(len(x), -1))
    return kept['tokens']
  return network(x).last_hidden_state


def resized(weights, grid, side, table):
  """Resizes position tables [1 n d] or [n d], keeping a class token's row."""
  out = {}
  for key, weight in weights.items():
    if 'text' not in key and 'decoder' not in key and (
        'position_embedding' in key and weight.dtype == torch.float32
    ):
      rows = weight.reshape(-1, weight.shape[-1])
      first, rest = rows[: -(grid**2)], rows[-(grid**2) :]
      rest = rest.T.reshape(1, -1, grid, grid)
      rest = functional.interpolate(rest, side, **table).flatten(2)[0].T
      shape = (*weight.shape[:-2], -1, weight.shape[-1])
      weight = torch.cat([first, rest]).reshape(shape)
    elif key.endswith('position_ids') and 'text' not in key:
      first = weight.shape[-1] - grid**2
      weight = torch.arange(side**2 + first)[None]
    elif key == 'decoder.decoder_pos_embed':
      weight = torch.zeros(1, side**2 + 1, weight.shape[-1])
    out[key] = weight
  return out
