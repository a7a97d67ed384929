"""Every name at full size against the key list of its published file.

Arrays stand in as shapes: loading a checkpoint of 27 GB allocates nothing.
"""

import math
import re

import golden_files
import numpy as np
import published
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.encoders import pixels
from irepa_jax.encoders import positions
from irepa_jax.encoders import unpack
from irepa_jax.encoders import zoo

NAMES = [n for n in encoders.names() if n.split('-')[0] in published.FORMATS]
GRID = dict(grid=(4, 4))
TINY = dict(width=32, depth=2, heads=2, **GRID)


class Shape:
  """An array of which only the shape exists, for the functions of unpack."""

  def __init__(self, shape):
    self.shape = tuple(shape)
    self.size = math.prod(self.shape)

  def __mul__(self, _):
    return self

  def __rmul__(self, _):
    return self

  def __array_function__(self, function, types, args, kwargs):
    del types, kwargs
    return FUNCTIONS[function](*args)


def reshape(array, shape):
  rest = array.size // math.prod(s for s in shape if s != -1)
  return Shape(rest if s == -1 else s for s in shape)


def concatenate(parts):
  rows = sum(part.shape[0] for part in parts)
  return Shape((rows, *parts[0].shape[1:]))


FUNCTIONS = {
    np.shape: lambda array: array.shape,
    np.size: lambda array: array.size,
    np.sum: lambda array: 0.0,
    np.reshape: reshape,
    np.concatenate: concatenate,
}


def stand_ins(file):
  """Returns the file with arrays of no size; the statistics of RADIO real."""
  out = {}
  for key, shape in file.items():
    if isinstance(shape, dict):
      out[key] = stand_ins(shape)
    elif key.endswith(('norm_mean', 'norm_std')):
      out[key] = np.reshape(pixels.CLIP[key.endswith('std')], (3, 1, 1))
    else:
      out[key] = Shape(shape) if isinstance(shape, tuple) else shape
  return out


@pytest.fixture(autouse=True)
def shapes_only(monkeypatch):
  """Resizes and converts shapes; both are tested with arrays elsewhere."""

  def resample(table, prefix, grid, kernel, via=0):
    del kernel, via
    assert round((table.shape[1] - prefix) ** 0.5) ** 2 + prefix == (
        table.shape[1]
    )
    return Shape((1, prefix + grid[0] * grid[1], table.shape[2]))

  monkeypatch.setattr(positions, 'resample', resample)
  monkeypatch.setattr(
      unpack.convert, 'from_torch', lambda module, tensors: tensors
  )


def accept(spec, file):
  return unpack.parameters(spec, spec.module, stand_ins(file))


@pytest.mark.parametrize('name', NAMES)
def test_full_size_file(name):
  spec = zoo.find(name)
  file = published.file(spec)
  tensors = accept(spec, file)
  wanted = unpack.official_shapes(spec.module)
  assert {k: np.shape(v) for k, v in tensors.items()} == wanted
  outer, inner = unwrapped(file)
  layout = unpack.recognise(spec.layouts, file)[0]
  used = [k for k in inner if not dropped(layout, k)]
  for key in (used[0], used[len(used) // 2], used[-1]):
    rest = {k: v for k, v in inner.items() if k != key}
    with pytest.raises(errors.DataError, match=written(layout, key)):
      accept(spec, outer(rest))
    if 'position' in key or key.endswith('pos_embed'):
      continue  # a table may have any size
    with pytest.raises(errors.DataError, match=written(layout, key)):
      accept(spec, outer(inner | {key: (*inner[key], 2)}))
  extra = used[-1] + '.surprise'
  with pytest.raises(errors.DataError, match=written(layout, extra)):
    accept(spec, outer(inner | {extra: (3,)}))


@pytest.mark.parametrize(
    'wanted, given',
    [
        ('dinov2-vit-b', 'dinov2-vit-l'),
        ('dinov2-vit-b', 'siglip2-vit-so400m'),
        ('dinov3-vit-7b16', 'webssl-vit-dino7b_full8b_224'),
        ('pe-vit-l', 'spatialpe-vit-b'),
        ('cradio-vit-b', 'sam-vit-h'),
        ('sam-vit-b', 'clip-vit-L'),
    ],
)
def test_weights_of_another_encoder_are_named(wanted, given):
  file = stand_ins(published.file(zoo.find(given)))
  with pytest.raises(errors.DataError) as caught:
    encoders.create(wanted).from_torch(file)
  text = str(caught.value)
  found = re.search(r'they look like the weights of (.*), not of (.*)$', text)
  assert given in found[1].split(' or ') and found[2] == wanted
  assert '\n' not in text


def unwrapped(file):
  """Returns (a function that wraps keys, the keys inside)."""
  if 'state_dict' in file:
    return lambda inner: file | {'state_dict': inner}, file['state_dict']
  return lambda inner: inner, file


def dropped(layout, key):
  patterns = [*layout.drop, *(pattern for pattern, _ in layout.constants)]
  return not key.startswith(layout.prefixes) or any(
      re.search(pattern, key) for pattern in patterns
  )


def written(layout, key):
  """Returns the key as an error has it: repaired."""
  for pattern, replacement in layout.repairs:
    key = re.sub(pattern, replacement, key)
  return re.escape(key)


SMALL = {
    'dino-vit-b': 'enc_dino',
    'mae-vit-l': 'enc_mae',
    'dinov2reg-vit-b': 'hf_dinov2_registers',
    'dinov2-vit-b': 'hf_dinov2_webssl',
    'webssl-vit-dino300m_full2b_224': 'hf_dinov2_webssl_swiglu',
    'dinov3-vit-b16': 'hf_dinov3_mlp',
    'jepa-vit-h': 'hf_ijepa',
    'siglip-vit-b': 'hf_siglip',
    'clip-vit-L': 'hf_clip',
    'langpe-vit-l': 'enc_pe_lang_l_cls_ls',
    'spatialpe-vit-b': 'enc_pe_spatial_b16_cls',
}
TEXT = ('text_model.', 'logit_', 'visual_projection', 'text_projection')


@pytest.mark.parametrize('name', SMALL)
def test_key_lists_are_those_of_the_official_classes(name):
  oracle = golden_files.subset(golden_files.load(SMALL[name]), 'sd')
  module = zoo.find(name).module.clone(**TINY)
  table = [v for k, v in oracle.items() if 'pos' in k and v.ndim > 1]
  rows = table[0].shape[-2] if table else 0
  listed = published.FORMATS[name.split('-')[0]](module, rows)
  listed = {k: v for k, v in listed.items() if not k.startswith(TEXT)}
  assert listed == {k: v.shape for k, v in oracle.items()}


def test_tower_of_pe_core_is_that_of_the_official_class(golden):
  oracle = golden_files.subset(golden('enc_pe_core_l_cls'), 'sd')
  module = zoo.find('pe-vit-l').module.clone(**TINY)
  listed = published.pe_core_tower(module, 577)
  found = {k: v.shape for k, v in oracle.items()}
  assert listed | {'proj': found['proj']} == found


@pytest.mark.parametrize('name', ['sam-vit-b', 'sam-vit-l', 'sam-vit-h'])
def test_full_size_file_of_sam(name):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  spec = zoo.find(name)
  m = spec.module
  config = transformers.SamConfig(
      vision_config=dict(
          hidden_size=m.inner,
          num_hidden_layers=m.depth,
          num_attention_heads=m.heads,
          global_attn_indexes=list(m.global_blocks),
          mlp_dim=int(m.inner * m.mlp_ratio),
          output_channels=m.width,
      )
  )
  with torch.device('meta'):
    network = transformers.SamModel(config)
  file = {k: tuple(v.shape) for k, v in network.state_dict().items()}
  accept(spec, file)
  listed = published.hf_sam(m, 0)
  assert listed == {key: file[key] for key in listed}


def test_full_size_file_of_sam2_masks():
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  for name in ('sam2logit-vit-s16', 'sam2logit-vit-b16', 'sam2logit-vit-l16'):
    spec = zoo.find(name)
    trunk = spec.module.trunk
    dims = [trunk.inner * 2**i for i in range(4)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=trunk.inner,
        num_attention_heads=trunk.heads,
        blocks_per_stage=list(trunk.depths),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[trunk.heads * 2**i for i in range(4)],
        window_size_per_stage=list(trunk.windows),
        global_attention_blocks=list(trunk.global_blocks),
        window_positional_embedding_background_size=[trunk.table] * 2,
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=dims[::-1]
    )
    config = transformers.Sam2Config(vision_config=vision.to_dict())
    with torch.device('meta'):
      network = transformers.Sam2Model(config)
    file = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    accept(spec, file)
    # The trunk alone, with its last map, is what sam2-vit uses.
    accept(zoo.find(name.replace('logit', '').removesuffix('16')), file)
    key = 'mask_decoder.mask_tokens.weight'
    with pytest.raises(errors.DataError, match=key):
      accept(spec, file | {key: (5, 256)})
    key = 'vision_encoder.backbone.blocks.3.norm1.weight'
    with pytest.raises(errors.DataError, match=re.escape(key)):
      accept(spec, file | {key: (5,)})
