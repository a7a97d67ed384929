"""SAM 2 asked for one mask at each point of a grid: mask logits as tokens.

Channel k of a token is the logit that its place belongs to the object at point
k. Trunk and neck give maps of 64, 128 and 256 places a side; a two-way
transformer lets the tokens of one point and the map look at each other; a
small network turns the mask's token into a filter over the enlarged map. Ravi
et al. 2024, arXiv 2408.00714; names as in transformers' Sam2Model.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import resize
from irepa_jax.encoders import blocks
from irepa_jax.encoders import hiera
from irepa_jax.encoders import vit

SIDE = 1024  # pixels of the input
WIDTH = 256  # channels of the neck and the decoder
HEADS = 8
MASKS = 4  # the first is used where it is stable, else the best of the others
STABLE_OFFSET, STABLE_SHARE = 0.05, 0.98


class SAM2Masks(nn.Module):
  """Maps pixels [b 1024 1024 3] to tokens [b h*w points*points], float32."""

  trunk: hiera.Hiera
  points: int = 16  # of the grid, along a side
  official_point_scaling: bool = True  # see places()
  resolution: int = 256  # of the image, pixels
  grid: tuple[int, int] = (16, 16)
  dtype: jnp.dtype = jnp.float32

  prefix = 0

  @property
  def width(self):
    """One channel per point."""
    return self.points**2

  def at(self, resolution):
    """Returns the module whose tokens stand for 16 pixels of the image."""
    return self.clone(resolution=resolution, grid=vit.grid(resolution))

  def example_inputs(self):
    """Returns the shape of one image's pixels."""
    return (jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32),)

  @nn.compact
  def __call__(self, x):
    side = SIDE // hiera.STRIDE
    trunk = self.trunk.clone(
        parent=self, name='backbone', grid=(side, side), dtype=self.dtype
    )
    fine, middle, coarse = Neck(self.dtype, name='neck')(trunk.stages(x))
    memory = self.param('no_memory_embedding', vit.TOKEN_INIT, (1, 1, WIDTH))
    prompts = Prompts(name='prompt_encoder')
    places, nothing, empty = prompts(self.places())
    image = Places(name='shared_image_embedding')(image_places(coarse.shape[1]))
    coarse = coarse + (memory + empty).astype(self.dtype)
    decoder = Decoder(self.dtype, name='mask_decoder')
    details = decoder.details(fine, middle)

    def masks(place):
      """Returns the logits of one point's object, [b h w] on the grid."""
      mask = decoder(coarse, image, details, jnp.stack([place, nothing]))
      return resize.resize(mask[..., None], self.grid, 'bilinear')[..., 0]

    if self.is_initializing():
      masks(places[0])
      logits = jnp.zeros((self.width, len(x), *self.grid), jnp.float32)
    else:
      logits = jax.lax.map(masks, places)  # [points*points b h w]
    return jnp.moveaxis(logits, 0, -1).reshape(len(x), -1, self.width)

  def places(self):
    """Returns the points [points*points 2], x and y as shares of the input.

    Parity: the released code gives points in pixels of the input to a processor
    that takes them for pixels of the image and scales them once more; all but
    the first sixteenth (at 256 pixels) then lie outside the image.
    """
    line = np.linspace(0, SIDE - 1, self.points)
    y, x = np.meshgrid(line, line, indexing='ij')
    points = np.stack([x, y], axis=-1).reshape(-1, 2)
    if self.official_point_scaling:
      points = points * (SIDE / self.resolution)
    return jnp.asarray((points + 0.5) / SIDE, jnp.float32)


def image_places(side):
  """Returns the centres [side*side 2] of a map's places, as x and y shares."""
  line = (np.arange(side) + 0.5) / side
  y, x = np.meshgrid(line, line, indexing='ij')
  return jnp.asarray(np.stack([x, y], axis=-1).reshape(-1, 2), jnp.float32)


class Neck(nn.Module):
  """Brings the trunk's maps to one width; the deepest joins the one before."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, maps):
    conv = lambda i, x: nn.Conv(
        WIDTH, (1, 1), dtype=self.dtype, name=f'convs_{i}'
    )(x)
    deepest, third, second, first = (
        conv(i, x) for i, x in enumerate(reversed(maps))
    )
    enlarged = deepest.repeat(2, axis=1).repeat(2, axis=2)
    return first, second, third + enlarged


class Places(nn.Module):
  """Encodes places [n 2] in [0, 1] by sines of random frequencies, [n 256]."""

  @nn.compact
  def __call__(self, places):
    shape = (2, WIDTH // 2)
    init = nn.initializers.normal(1.0)
    frequencies = self.param('positional_embedding', init, shape)
    angles = jnp.matmul(2 * places - 1, frequencies, precision='highest')
    angles = 2 * math.pi * angles
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Prompts(nn.Module):
  """Tokens of points in the foreground, of no point and of no mask."""

  @nn.compact
  def __call__(self, places):
    kinds = Table(4, name='point_embed')()
    points = Places(name='shared_embedding')(places) + kinds[1]
    nothing = Table(1, name='not_a_point_embed')()[0]
    return points, nothing, Table(1, name='no_mask_embed')()[0]


class Decoder(nn.Module):
  """Masks from a map and the tokens of one point."""

  dtype: jnp.dtype

  def setup(self):
    table = lambda n: Table(n)
    self.obj_score_token, self.iou_token = table(1), table(1)
    self.mask_tokens = table(MASKS)
    self.transformer = TwoWay(self.dtype)
    conv = lambda width: nn.Conv(width, (1, 1), dtype=self.dtype)
    self.conv_s0, self.conv_s1 = conv(WIDTH // 8), conv(WIDTH // 4)
    self.upscale_conv1 = Doubled(WIDTH // 4, self.dtype)
    self.upscale_conv2 = Doubled(WIDTH // 8, self.dtype)
    self.upscale_layer_norm = blocks.LayerNorm(1e-6, self.dtype)
    self.output_hypernetworks_mlps = [
        Perceptron(WIDTH, WIDTH // 8, 3, self.dtype) for _ in range(MASKS)
    ]
    self.iou_prediction_head = Perceptron(WIDTH, MASKS, 3, self.dtype)

  def details(self, fine, middle):
    """Returns what enlarging adds at 128 and at 256 places a side."""
    return self.conv_s1(middle), self.conv_s0(fine)

  def __call__(self, image, places, details, prompt):
    """Returns one mask [b 256 256]: image [b 64 64 d], prompt [2 d]."""
    b, h, w, d = image.shape
    tables = self.obj_score_token, self.iou_token, self.mask_tokens
    tokens = jnp.concatenate([*(table() for table in tables), prompt])
    tokens = jnp.broadcast_to(tokens, (b, *tokens.shape)).astype(self.dtype)
    places = places[None].astype(self.dtype)
    tokens, image = self.transformer(tokens, image.reshape(b, -1, d), places)
    up = self._enlarged(image.reshape(b, h, w, d), *details)
    filters = [
        mlp(tokens[:, 2 + i])
        for i, mlp in enumerate(self.output_hypernetworks_mlps)
    ]
    masks = jnp.einsum(
        'bmc,bhwc->bmhw',
        jnp.stack(filters, axis=1),
        up,
        preferred_element_type=jnp.float32,
    )
    return steady(masks, self.iou_prediction_head(tokens[:, 1]))

  def _enlarged(self, image, middle, fine):
    gelu = blocks.ACTIVATIONS['gelu']
    image = self.upscale_conv1(image) + middle
    image = gelu(self.upscale_layer_norm(image))
    return gelu(self.upscale_conv2(image) + fine)


def steady(masks, scores):
  """Takes mask 0 of [b 4 h w] where it is stable, else the best of the rest."""
  area = lambda level: (masks[:, 0] > level).sum((1, 2)).astype(jnp.float32)
  outer = area(-STABLE_OFFSET)
  share = jnp.where(outer > 0, area(STABLE_OFFSET) / jnp.maximum(outer, 1), 1)
  best = 1 + jnp.argmax(scores[:, 1:], axis=-1)
  pick = jnp.where(share >= STABLE_SHARE, 0, best)
  return jnp.take_along_axis(masks, pick[:, None, None, None], axis=1)[:, 0]


class TwoWay(nn.Module):
  """Two rounds of attention between tokens and a map, and a last look."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, image, places):
    first = tokens
    for i in range(2):
      layer = TwoWayLayer(i == 0, self.dtype, name=f'layers_{i}')
      tokens, image = layer(tokens, image, first, places)
    look = Attention(WIDTH // 2, self.dtype, name='final_attn_token_to_image')
    tokens = tokens + look(tokens + first, image + places, image)
    norm = blocks.LayerNorm(1e-5, self.dtype, name='layer_norm_final_attn')
    return norm(tokens), image


class TwoWayLayer(nn.Module):
  """Tokens look at each other and the map; the map looks at the tokens."""

  opening: bool  # the first layer: tokens without places and without residual
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens, image, first, places):
    attend = lambda width, name: Attention(width, self.dtype, name=name)
    norm = lambda i, x: blocks.LayerNorm(
        1e-5, self.dtype, name=f'layer_norm{i}'
    )(x)
    look = attend(WIDTH, 'self_attn')
    if self.opening:
      tokens = look(tokens, tokens, tokens)
    else:
      asked = tokens + first
      tokens = tokens + look(asked, asked, tokens)
    tokens = norm(1, tokens)
    look = attend(WIDTH // 2, 'cross_attn_token_to_image')
    tokens = norm(2, tokens + look(tokens + first, image + places, image))
    mlp = Perceptron(2048, WIDTH, 2, self.dtype, name='mlp')
    tokens = norm(3, tokens + mlp(tokens))
    look = attend(WIDTH // 2, 'cross_attn_image_to_token')
    image = norm(4, image + look(image + places, tokens + first, tokens))
    return tokens, image


class Attention(nn.Module):
  """Attention between two sets of tokens [b n d] in a width of its own."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, q, k, v):
    dense = lambda width, name: blocks.Dense(
        width, dtype=self.dtype, name=f'{name}_proj'
    )
    split = lambda x: x.reshape(*x.shape[:2], HEADS, -1)
    q, k, v = (
        split(dense(self.width, name)(x))
        for name, x in zip('qkv', (q, k, v), strict=True)
    )
    x = blocks.library_attention(q, k, v)
    return dense(WIDTH, 'o')(x.reshape(*x.shape[:2], -1))


class Perceptron(nn.Module):
  """Linear layers with ReLU between."""

  hidden: int
  features: int
  layers: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    inner = [f'layers_{i}' for i in range(self.layers - 2)]
    for name in ('proj_in', *inner):
      x = nn.relu(blocks.Dense(self.hidden, dtype=self.dtype, name=name)(x))
    return blocks.Dense(self.features, dtype=self.dtype, name='proj_out')(x)


class Doubled(nn.Module):
  """Transposed convolution with kernel and stride 2: maps twice as large."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    init = nn.initializers.lecun_normal(in_axis=0, out_axis=1)
    weight = self.param('weight', init, (c, self.features, 2, 2))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = jnp.einsum('bhwc,coyx->bhywxo', x, weight.astype(self.dtype))
    x = x.reshape(b, 2 * h, 2 * w, self.features)
    return x + bias.astype(self.dtype)


class Table(nn.Module):
  """Learned tokens [n 256]."""

  count: int

  @nn.compact
  def __call__(self):
    return self.param('embedding', vit.TOKEN_INIT, (self.count, WIDTH))
