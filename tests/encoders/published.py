"""Keys and shapes of the published weight files, written from their formats.

`file(spec)` is what the default source of a row holds, text towers, heads and
mask tokens included, as {key: shape}; nothing here reads layouts.py. The same
functions at small sizes are compared with files of the official classes.
"""

MLP = ('fc1', 'fc2')


def file(spec):
  """Returns {key: shape} of the published file of a row; nested as it is."""
  return FORMATS[spec.name.split('-')[0]](spec.module, table_rows(spec))


def table_rows(spec):
  """Returns the rows of the position table in the file; 0 without one."""
  module = spec.module
  if getattr(module, 'position', 'none') == 'none':
    return 0
  return module.table_prefix + spec.table_grid**2


def linear(name, inputs, outputs, bias=True):
  shapes = {f'{name}.weight': (outputs, inputs)}
  return shapes | ({f'{name}.bias': (outputs,)} if bias else {})


def norm(name, width):
  return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def conv(name, inputs, outputs, side, bias=True):
  shapes = {f'{name}.weight': (outputs, inputs, side, side)}
  return shapes | ({f'{name}.bias': (outputs,)} if bias else {})


def prefixed(prefix, shapes):
  return {prefix + key: shape for key, shape in shapes.items()}


def block(name, width, hidden, names, *, split=(), scale=()):
  """A transformer block; names: of norms, qkv, projection and MLP."""
  norm1, qkv, proj, norm2, up, down = (f'{name}.{n}' for n in names)
  shapes = norm(norm1, width) | norm(norm2, width)
  if split:
    for part in split:
      shapes |= linear(f'{qkv}.{part}', width, width)
  else:
    shapes |= linear(qkv, width, 3 * width)
  shapes |= linear(proj, width, width)
  shapes |= linear(up, width, hidden) | linear(down, hidden, width)
  return shapes | {f'{name}.{n}': (width,) for n in scale}


# --- Files of the official code ----------------------------------------------

TIMM = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')


def official(m, rows):
  """DINO and MAE, as timm has them."""
  w = m.width
  shapes = {'cls_token': (1, 1, w), 'pos_embed': (1, rows, w)}
  shapes |= conv('patch_embed.proj', 3, w, m.patch) | norm('norm', w)
  for i in range(m.depth):
    shapes |= block(f'blocks.{i}', w, m.hidden, TIMM)
  return shapes


def mocov3(m, rows):
  """The training checkpoint: both encoders, their heads and the predictor."""

  def head(name, sizes):
    shapes = {}
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
      shapes |= linear(f'{name}.{3 * i}', a, b, bias=False)
      shapes |= norm(f'{name}.{3 * i + 1}', b)
    return shapes

  encoder = official(m, rows) | head('head', (m.width, 4096, 4096, 256))
  shapes = prefixed('module.base_encoder.', misspelt(encoder))
  shapes |= prefixed('module.momentum_encoder.', encoder)
  shapes |= head('module.predictor', (256, 4096, 256))
  return {'state_dict': shapes, 'epoch': 300, 'arch': 'vit'}


def misspelt(shapes):
  """Misspells the keys of two blocks as the file of the ViT-L does."""
  wrong = (
      ('blocks.13.norm1.', 'blocks.13.norm13.'),
      ('blocks.13.mlp.fc1.', 'blocks.13.mlp.fc13.'),
      ('blocks.14.norm2.', 'blocks.14.norm14.'),
      ('blocks.14.mlp.fc2.', 'blocks.14.mlp.fc14.'),
  )
  out = {}
  for key, shape in shapes.items():
    for right, written in wrong:
      key = key.replace(right, written)
    out[key] = shape
  return out


def openai(m, rows, layer_scale=None):
  """The tower of CLIP and of Perception Encoders, without its ends."""
  w = m.width
  names = ('ln_1', 'attn.in_proj', 'attn.out_proj', 'ln_2')
  names += ('mlp.c_fc', 'mlp.c_proj')
  scale = ('ls_1.gamma', 'ls_2.gamma') if layer_scale else ()
  shapes = {'positional_embedding': (rows, w)} | norm('ln_pre', w)
  shapes |= conv('conv1', 3, w, m.patch, bias=False)
  if m.class_tokens:
    shapes['class_embedding'] = (w,)
  for i in range(m.depth):
    name = f'transformer.resblocks.{i}'
    shapes |= block(name, w, m.hidden, names, scale=scale)
  return {k.replace('in_proj.', 'in_proj_'): v for k, v in shapes.items()}


def pe_core_tower(m, rows, pool_ratio=4):
  w = m.width
  shapes = openai(m, rows) | norm('ln_post', w) | {'proj': (w, 1024)}
  pool = {'probe': (1, 1, w)}
  pool |= {'attn.in_proj_weight': (3 * w, w), 'attn.in_proj_bias': (3 * w,)}
  pool |= linear('attn.out_proj', w, w) | norm('layernorm', w)
  pool |= linear('mlp.c_fc', w, pool_ratio * w)
  pool |= linear('mlp.c_proj', pool_ratio * w, w)
  return shapes | prefixed('attn_pool.', pool)


def pe_core(m, rows):
  """A pair of towers in one file."""
  text = {
      'positional_embedding': (72, 512),
      'token_embedding.weight': (49408, 512),
      'text_projection': (512, 1024),
      'logit_scale': (),
  }
  text |= norm('ln_final', 512)
  for i in range(2):
    names = ('ln_1', 'attn.in_proj', 'attn.out_proj', 'ln_2')
    names += ('mlp.c_fc', 'mlp.c_proj')
    text |= block(f'transformer.resblocks.{i}', 512, 2048, names)
  return text | prefixed('visual.', pe_core_tower(m, rows))


def pe_other(m, rows):
  """PE-Lang and PE-Spatial: the tower alone."""
  return openai(m, rows, layer_scale=m.layer_scale)


def radio(m, rows):
  """C-RADIOv3 as the hub has it, its layer scale misspelt."""
  w = m.width
  scale = ('ls1.grandma', 'ls2.grandma') if m.layer_scale else ()
  shapes = {
      'patch_generator.embedder.weight': (w, 3 * m.patch**2),
      'patch_generator.pos_embed': (1, rows, w),
      'patch_generator.cls_token.token': (8, w),
      'reg_token': (1, 4, w),
  }
  for i in range(m.depth):
    shapes |= block(f'blocks.{i}', w, m.hidden, TIMM, scale=scale)
  shapes = prefixed('radio_model.model.', shapes)
  shapes |= {'radio_model.summary_idxs': (3,)}
  for name in ('norm_mean', 'norm_std'):
    shapes[f'radio_model.input_conditioner.{name}'] = (3, 1, 1)
  return shapes


def vgg(m, rows):
  """VGG-16 of torchvision, classifier included."""
  del m, rows
  layers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
  widths = (3, 64, 64, 128, 128, 256, 256, 256) + (512,) * 6
  shapes = {}
  for layer, a, b in zip(layers, widths[:-1], widths[1:], strict=True):
    shapes |= conv(f'features.{layer}', a, b, 3)
  for layer, (a, b) in {0: (25088, 4096), 3: (4096, 4096)}.items():
    shapes |= linear(f'classifier.{layer}', a, b)
  return shapes | linear('classifier.6', 4096, 1000)


# --- Files of transformers ---------------------------------------------------

QKV = ('query', 'key', 'value')
QKV_PROJ = ('q_proj', 'k_proj', 'v_proj')


def hf_embeddings(m, rows):
  w = m.width
  name = 'embeddings.patch_embeddings.projection'
  shapes = conv(name, 3, w, m.patch) | norm('layernorm', w)
  shapes['embeddings.position_embeddings'] = (1, rows, w)
  if m.class_tokens:
    shapes['embeddings.cls_token'] = (1, 1, w)
  return shapes


def hf_dinov2(m, rows):
  """Dinov2Model, with registers or without; also of Web-SSL."""
  w, h = m.width, m.hidden
  shapes = hf_embeddings(m, rows) | {'embeddings.mask_token': (1, w)}
  if m.registers:
    shapes['embeddings.register_tokens'] = (1, m.registers, w)
  names = ('norm1', 'attention.attention', 'attention.output.dense', 'norm2')
  scale = ('layer_scale1.lambda1', 'layer_scale2.lambda1')
  for i in range(m.depth):
    name = f'encoder.layer.{i}'
    mlp = (*names, 'mlp.fc1', 'mlp.fc2')
    one = block(name, w, h, mlp, split=QKV, scale=scale)
    if m.mlp == 'swiglu':
      one = {k: v for k, v in one.items() if '.mlp.' not in k}
      one |= linear(f'{name}.mlp.weights_in', w, 2 * h)
      one |= linear(f'{name}.mlp.weights_out', h, w)
    shapes |= one
  return shapes


def hf_vit(m, rows):
  """ViTModel and IJepaModel."""
  names = ('layernorm_before', 'attention.attention', 'attention.output.dense')
  names += ('layernorm_after', 'intermediate.dense', 'output.dense')
  shapes = hf_embeddings(m, rows)
  for i in range(m.depth):
    shapes |= block(f'encoder.layer.{i}', m.width, m.hidden, names, split=QKV)
  return shapes


def hf_dinov3(m, rows):
  """DINOv3ViTModel: no bias of keys; gated and 7B: of none of the three."""
  del rows
  w, h = m.width, m.hidden
  shapes = {
      'embeddings.cls_token': (1, 1, w),
      'embeddings.mask_token': (1, 1, w),
      'embeddings.register_tokens': (1, 4, w),
      'embeddings.patch_embeddings.weight': (w, 3, m.patch, m.patch),
      'embeddings.patch_embeddings.bias': (w,),
  } | norm('norm', w)
  names = ('norm1', 'attention', 'attention.o_proj', 'norm2')
  names += ('mlp.up_proj', 'mlp.down_proj')
  scale = ('layer_scale1.lambda1', 'layer_scale2.lambda1')
  for i in range(m.depth):
    name = f'layer.{i}'
    shapes |= block(name, w, h, names, split=QKV_PROJ, scale=scale)
    if m.mlp == 'swiglu':
      shapes |= linear(f'{name}.mlp.gate_proj', w, h)
    for part in QKV_PROJ:
      if part == 'k_proj' or not m.qkv_bias:
        shapes.pop(f'{name}.attention.{part}.bias')
  return shapes


def hf_tower(m, rows, prefix='vision_model.'):
  """The transformer of CLIP's and SigLIP's vision towers."""
  w = m.width
  names = ('layer_norm1', 'self_attn', 'self_attn.out_proj', 'layer_norm2')
  shapes = {'embeddings.position_embedding.weight': (rows, w)}
  shapes |= norm('post_layernorm', w)
  for i in range(m.depth):
    name = f'encoder.layers.{i}'
    mlp = (*names, 'mlp.fc1', 'mlp.fc2')
    shapes |= block(name, w, m.hidden, mlp, split=QKV_PROJ)
  return prefixed(prefix, shapes)


def hf_siglip(m, rows):
  w = m.width
  shapes = hf_tower(m, rows)
  shapes |= conv('vision_model.embeddings.patch_embedding', 3, w, m.patch)
  head = {'probe': (1, 1, w)}
  head |= {'attention.in_proj_weight': (3 * w, w)}
  head |= {'attention.in_proj_bias': (3 * w,)}
  head |= linear('attention.out_proj', w, w) | norm('layernorm', w)
  head |= linear('mlp.fc1', w, m.hidden) | linear('mlp.fc2', m.hidden, w)
  shapes |= prefixed('vision_model.head.', head)
  text = {k: (8,) for k in ('embeddings.token_embedding.weight',)}
  text |= norm('final_layer_norm', w) | linear('head', w, w)
  shapes |= prefixed('text_model.', text)
  return shapes | {'logit_scale': (1,), 'logit_bias': (1,)}


def hf_clip(m, rows):
  w = m.width
  shapes = hf_tower(m, rows) | norm('vision_model.pre_layrnorm', w)
  name = 'vision_model.embeddings.patch_embedding'
  shapes |= conv(name, 3, w, m.patch, bias=False)
  shapes['vision_model.embeddings.class_embedding'] = (w,)
  shapes |= norm('text_model.final_layer_norm', 768)
  shapes |= linear('visual_projection', w, 768, bias=False)
  shapes |= linear('text_projection', 768, 768, bias=False)
  return shapes | {'logit_scale': ()}


def hf_sam(m, rows):
  """SamModel; of the prompt's and the mask's parts a few keys."""
  del rows
  w, h = m.inner, int(m.inner * m.mlp_ratio)
  side, head = m.side // m.patch, m.inner // m.heads
  names = ('layer_norm1', 'attn.qkv', 'attn.proj', 'layer_norm2')
  names += ('mlp.lin1', 'mlp.lin2')
  shapes = conv('patch_embed.projection', 3, w, m.patch)
  shapes |= {'pos_embed': (1, side, side, w)}
  for i in range(m.depth):
    size = 2 * (side if i in m.global_blocks else m.window) - 1
    shapes |= block(f'layers.{i}', w, h, names)
    for axis in 'hw':
      shapes[f'layers.{i}.attn.rel_pos_{axis}'] = (size, head)
  shapes |= conv('neck.conv1', w, m.width, 1, bias=False)
  shapes |= conv('neck.conv2', m.width, m.width, 3, bias=False)
  for i in (1, 2):
    shapes |= norm(f'neck.layer_norm{i}', m.width)
  return prefixed('vision_encoder.', shapes) | {
      'shared_image_embedding.positional_embedding': (2, 128),
      'prompt_encoder.no_mask_embed.weight': (1, 256),
      'mask_decoder.iou_token.weight': (1, 256),
  }


def hf_sam2(m, rows):
  """The trunk of Sam2Model, and a few keys of what follows it."""
  del rows
  names = ('layer_norm1', 'attn.qkv', 'attn.proj', 'layer_norm2')
  names += ('mlp.proj_in', 'mlp.proj_out')
  shapes = {
      'pos_embed': (1, m.inner, m.table, m.table),
      'pos_embed_window': (1, m.inner, 8, 8),
  } | conv('patch_embed.projection', 3, m.inner, 7)
  before, i = m.inner, 0
  for stage, depth in enumerate(m.depths):
    width = m.inner * 2**stage
    for _ in range(depth):
      name = f'blocks.{i}'
      one = block(name, width, 4 * width, names)
      if before != width:
        one |= norm(f'{name}.layer_norm1', before)
        one |= linear(f'{name}.attn.qkv', before, 3 * width)
        one |= linear(f'{name}.proj', before, width)
      shapes |= one
      before, i = width, i + 1
  shapes = prefixed('vision_encoder.backbone.', shapes)
  shapes |= conv('vision_encoder.neck.convs.0', before, 256, 1)
  return shapes | {'mask_decoder.iou_token.weight': (1, 256)}


FORMATS = {
    'dino': official,
    'dinov2': hf_dinov2,
    'dinov2reg': hf_dinov2,
    'dinov2mixed': hf_dinov2,
    'dinov2mixedreg': hf_dinov2,
    'dinov3': hf_dinov3,
    'webssl': hf_dinov2,
    'mocov3': mocov3,
    'mae': official,
    'jepa': hf_vit,
    'siglip': hf_siglip,
    'siglip2': hf_siglip,
    'clip': hf_clip,
    'pe': pe_core,
    'langpe': pe_other,
    'spatialpe': pe_other,
    'cradio': radio,
    'sam': hf_sam,
    'sam2': hf_sam2,
    'vgg': vgg,
}
