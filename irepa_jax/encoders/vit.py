"""One vision transformer for every family that differs only by its settings.

  x = patches + positions, with prefix tokens (class, registers) in front
  x = x + ls1 * attention(norm1(x));  x = x + ls2 * mlp(norm2(x))    depth times

Dosovitskiy et al. 2021, arXiv 2010.11929. Parameter names are those of the
official DINOv2 code; layouts.py has the names of other files.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from irepa_jax import errors
from irepa_jax.encoders import blocks
from irepa_jax.encoders import rotary
from irepa_jax.models import stack

PIXELS_PER_TOKEN = 16  # of the image, before it is resized to the input
TOKEN_INIT = nn.initializers.normal(0.02)


class ViT(nn.Module):
  """Maps pixels [b h*patch w*patch 3] to tokens [b prefix+h*w width].

  Tokens are float32. The first `prefix` are class tokens and registers.
  """

  width: int
  depth: int
  heads: int
  patch: int = 14
  grid: tuple[int, int] = (16, 16)
  patch_bias: bool = True
  class_tokens: int = 1
  registers: int = 0
  position: str = 'with_class'  # what the table covers; or patches, none
  pre_norm: bool = False
  epsilon: float = 1e-6
  qkv_bias: bool = True
  rope: str = 'none'  # dinov3, pe
  rope_periods_dtype: str = 'bfloat16'  # of dinov3, where a file has none
  layer_scale: bool = False
  mlp: str = 'gelu'  # gelu_tanh, quick_gelu, swiglu
  mlp_ratio: float = 4.0
  mlp_multiple: int = 1  # the hidden width is rounded up to it
  final_norm: bool = True
  class_share: float = 0.0  # of the class token mixed into patch tokens
  attention: str = 'auto'  # xla, cudnn
  platform: str = 'cpu'  # of models.forms
  dtype: jnp.dtype = jnp.float32
  scan_layers: bool = False  # these three: see models.stack.Plan
  gather: Callable | None = None
  constrain: Callable | None = None

  @property
  def prefix(self):
    """Tokens in front of the patches."""
    return self.class_tokens + self.registers

  @property
  def table_prefix(self):
    """Rows of the position table that belong to no patch."""
    return self.class_tokens if self.position == 'with_class' else 0

  @property
  def hidden(self):
    """Width inside the MLP; of one branch, for swiglu."""
    hidden = int(self.width * self.mlp_ratio + 1e-6)
    return -(-hidden // self.mlp_multiple) * self.mlp_multiple

  def at(self, resolution):
    """Returns the module for square images: one token per 16 pixels."""
    return self.clone(grid=grid(resolution))

  def example_inputs(self):
    """Returns the shape of one image's pixels."""
    h, w = self.grid
    shape = (1, h * self.patch, w * self.patch, 3)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)

  @nn.compact
  def __call__(self, x):
    embed = PatchEmbed(
        self.width, self.patch, self.patch_bias, self.dtype, name='patch_embed'
    )
    x = self._placed(embed(x))
    if self.pre_norm:
      x = blocks.LayerNorm(self.epsilon, name='norm_pre')(x)
    x = self._blocks(x.astype(self.dtype), self._angles())
    if self.final_norm:
      x = blocks.LayerNorm(self.epsilon, name='norm')(x)
    return self._mixed(x.astype(jnp.float32))

  def _placed(self, x):
    """Adds places to patches x [b n d] and puts the prefix in front."""
    token = lambda name, n: self.param(name, TOKEN_INIT, (1, n, self.width))
    front = []
    if self.class_tokens:
      front.append(token('cls_token', self.class_tokens))
    if self.position != 'none':
      table = token('pos_embed', self.table_prefix + x.shape[1])
      x = x + table[:, self.table_prefix :]
    if self.table_prefix:
      front = [front[0] + table[:, : self.table_prefix]]
    if self.registers:
      front.append(token('register_tokens', self.registers))
    front = [jnp.broadcast_to(f, (len(x), *f.shape[1:])) for f in front]
    return jnp.concatenate([*front, x], axis=1)

  def _blocks(self, x, angles):
    settings = (
        self.heads,
        self.hidden,
        self.epsilon,
        self.qkv_bias,
        self.rope,
        self.layer_scale,
        self.mlp,
        self.attention,
        self.platform,
        self.dtype,
    )
    names = [f'blocks_{i}' for i in range(self.depth)]
    block = blocks.Block(*settings, parent=None)
    if self.is_initializing():
      self._init_blocks(block, names, x, angles)
      return x
    apply = lambda weights, x, c: block.apply({'params': weights}, x, c)
    weights = [self._cast(self.variables['params'][name]) for name in names]
    plan = stack.Plan(self.scan_layers, 'none', self.gather, self.constrain)
    return stack.run(apply, weights, x, angles, plan)

  def _init_blocks(self, block, names, x, angles):
    """Creates all blocks by one traced function: fast at any depth."""
    keys = jax.random.split(self.make_rng('params'), self.depth)
    init = lambda key: block.init(key, x, angles)['params']
    stacked = jax.vmap(init)(keys)
    for i, name in enumerate(names):
      pick = lambda key, i=i: jax.tree.map(lambda w: w[i], stacked)
      self.param(name, pick)

  def _cast(self, weights):
    """Casts the matrices; vectors are used in float32."""
    matrix = lambda w: w.astype(self.dtype) if w.ndim > 1 else w
    return jax.tree.map(matrix, weights)

  def _angles(self):
    """Returns the rotary angles [n h] of the patches, or None."""
    head_width = self.width // self.heads
    if self.rope == 'dinov3':
      stored = Periods(head_width, self.rope_periods_dtype, name='rope_embed')
      return rotary.dinov3_angles(stored(), self.grid)
    if self.rope == 'pe':
      return rotary.pe_angles(head_width, self.grid, offset=self.class_tokens)
    return None

  def _mixed(self, x):
    """Moves patch tokens towards the class token by `class_share`."""
    if not self.class_share:
      return x
    front, patches = x[:, : self.prefix], x[:, self.prefix :]
    patches = self.class_share * x[:, :1] + (1 - self.class_share) * patches
    return jnp.concatenate([front, patches], axis=1)


def grid(resolution):
  """Returns the grid of one token per 16 pixels of a square image."""
  side = resolution // PIXELS_PER_TOKEN
  if side < 1 or resolution % PIXELS_PER_TOKEN:
    raise errors.UsageError(
        f'resolution {resolution} is not a multiple of {PIXELS_PER_TOKEN}'
    )
  return side, side


class PatchEmbed(nn.Module):
  """Maps pixels [b h*p w*p 3] to one token per patch, [b h*w d] float32."""

  width: int
  patch: int
  bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    size = (self.patch, self.patch)
    conv = nn.Conv(
        self.width,
        size,
        strides=size,
        padding='VALID',
        use_bias=self.bias,
        dtype=self.dtype,
        name='proj',
    )
    return conv(x).reshape(len(x), -1, self.width).astype(jnp.float32)


class Periods(nn.Module):
  """The stored rotary periods of DINOv3, [head_width / 4]."""

  head_width: int
  dtype: str

  @nn.compact
  def __call__(self):
    periods = rotary.dinov3_periods(self.head_width, self.dtype)
    return self.param('periods', lambda key: jnp.asarray(periods))
