"""The trunk of SAM 2: Hiera, a transformer whose maps halve between stages.

Attention in windows, in a few blocks over the whole map; where a stage begins,
queries are pooled 2 x 2 and channels double. Ryali et al. 2023, arXiv
2306.00989; Ravi et al. 2024, arXiv 2408.00714. Tokens are those of the last
stage, without a norm, one per 32 pixels of an input twice the image's size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax import resize
from irepa_jax.encoders import blocks
from irepa_jax.encoders import sam
from irepa_jax.encoders import vit

EPSILON = 1e-6
STRIDE = 32  # input pixels per token
TILE = 8  # side of the repeated part of the position table
CHUNK = 1024  # queries at a time, to bound the memory of their logits


class Hiera(nn.Module):
  """Maps pixels [b 32*h 32*w 3] to tokens [b h*w width], float32."""

  inner: int = 96  # channels of the first stage
  depths: tuple[int, ...] = (1, 2, 11, 2)
  heads: int = 1  # of the first stage
  windows: tuple[int, ...] = (8, 4, 14, 7)
  global_blocks: tuple[int, ...] = (7, 10, 13)
  table: int = 7  # side of the resized part of the position table
  grid: tuple[int, int] = (16, 16)
  dtype: jnp.dtype = jnp.float32

  prefix = 0

  @property
  def width(self):
    """Channels of the last stage."""
    return self.inner * 2 ** (len(self.depths) - 1)

  def at(self, resolution):
    """Returns the module whose tokens stand for 16 pixels of the image."""
    return self.clone(grid=vit.grid(resolution))

  def example_inputs(self):
    """Returns the shape of one image's pixels."""
    h, w = self.grid
    shape = (1, STRIDE * h, STRIDE * w, 3)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)

  def __call__(self, x):
    x = self.stages(x)[-1].astype(jnp.float32)
    return x.reshape(len(x), -1, self.width)

  @nn.compact
  def stages(self, x):
    """Returns the last map [b h w d] of every stage."""
    x = Stem(self.inner, self.dtype, name='patch_embed')(x)
    places = self._places(x.shape[1:3])
    x = (x.astype(jnp.float32) + places).astype(self.dtype)
    maps, index, before = [], 0, self.windows[0]
    for stage, (depth, window) in enumerate(
        zip(self.depths, self.windows, strict=True)
    ):
      for i in range(depth):
        size = before if i == 0 else window
        block = Block(
            self.inner * 2**stage,
            self.heads * 2**stage,
            0 if index in self.global_blocks else size,
            pool=stage > 0 and i == 0,
            dtype=self.dtype,
            name=f'blocks_{index}',
        )
        x, index = block(x), index + 1
      before = window
      maps.append(x)
    return maps

  def _places(self, size):
    side = self.table
    shape = lambda side: (1, self.inner, side, side)
    table = self.param('pos_embed', vit.TOKEN_INIT, shape(side))
    tile = self.param('pos_embed_window', vit.TOKEN_INIT, shape(TILE))
    table = resize.resize(table.transpose(0, 2, 3, 1), size, 'cubic075')
    repeats = (1, size[0] // TILE, size[1] // TILE, 1)
    return table + jnp.tile(tile.transpose(0, 2, 3, 1), repeats)


class Stem(nn.Module):
  """Overlapping patches: 7 x 7 at stride 4."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    conv = nn.Conv(
        self.width,
        (7, 7),
        strides=(4, 4),
        padding=((3, 3), (3, 3)),
        dtype=self.dtype,
        name='proj',
    )
    return conv(x)


class Block(nn.Module):
  """Attention in windows of a map [b h w d]; `pool` halves the map."""

  width: int
  heads: int
  window: int  # 0: the whole map
  pool: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    norm = lambda name: blocks.LayerNorm(EPSILON, self.dtype, name=name)
    y = norm('norm1')(x)
    if self.pool:
      x = halve(blocks.Dense(self.width, dtype=self.dtype, name='proj')(y))
    y = sam.windows(y, self.window) if self.window else y
    attend = Attention(
        self.width, self.heads, self.pool, self.dtype, name='attn'
    )
    y = attend(y)
    x = x + (sam.unwindows(y, x.shape) if self.window else y)
    mlp = blocks.MLP(4 * self.width, 'gelu', self.dtype, name='mlp')
    return x + mlp(norm('norm2')(x))


class Attention(nn.Module):
  """Attention over maps [b h w d]; `pool` halves the map of the queries."""

  width: int
  heads: int
  pool: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    qkv = blocks.Dense(3 * self.width, dtype=self.dtype, name='qkv')(x)
    q, k, v = jnp.split(qkv, 3, axis=-1)
    q = halve(q) if self.pool else q
    size = self.width // self.heads
    heads = lambda x: x.reshape(len(x), -1, self.heads, size)
    y = attention(heads(q), heads(k), heads(v)).reshape(q.shape)
    return blocks.Dense(self.width, dtype=self.dtype, name='proj')(y)


def attention(q, k, v):
  """Attention of heads [b n k h], CHUNK queries at a time."""
  b, n, *rest = q.shape
  if n <= CHUNK:
    return blocks.library_attention(q, k, v)
  parts = jnp.pad(q, ((0, 0), (0, -n % CHUNK), (0, 0), (0, 0)))
  parts = jnp.moveaxis(parts.reshape(b, -1, CHUNK, *rest), 1, 0)
  parts = jax.lax.map(lambda part: blocks.library_attention(part, k, v), parts)
  return jnp.moveaxis(parts, 0, 1).reshape(b, -1, *rest)[:, :n]


def halve(x):
  """Takes the largest of every 2 x 2 places of maps [b h w d]."""
  return nn.max_pool(x, (2, 2), (2, 2))
