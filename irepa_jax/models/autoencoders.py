"""Autoencoders between images and the latents that are diffused, by name.

`encode` returns moments: mean | standard deviation of the posterior, from which
training draws z = mean + std * noise and normalises it, x = (z - bias) * scale,
with the statistics of the data set. `bias` and `scale` here are the published
ones; None where a data set measures its own.
"""

import dataclasses
import difflib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from irepa_jax import errors
from irepa_jax.models import haar
from irepa_jax.models import pixels
from irepa_jax.models import vae
from irepa_jax.models import vae_layouts
from irepa_jax.weights import convert
from irepa_jax.weights import files
from irepa_jax.weights import state_dicts


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """A module with `moments` and `decode`, and where its weights come from."""

  name: str
  module: nn.Module
  source: str | None = None  # hub id; '': not published; None: no weights
  filename: str | None = None
  bias: tuple[float, ...] | None = None  # per channel of z
  scale: tuple[float, ...] | None = None
  stored: bool = True  # whether a data set holds its moments beside images
  grey: bool = False  # keeps the brightness of an image alone

  @property
  def channels(self):
    return self.module.channels

  @property
  def factor(self):
    """Pixels per latent, along each side."""
    return self.module.factor

  def init(self, key):
    """Returns random parameters; empty where there are none."""
    (x,) = self.module.example_inputs()
    return self.module.init(key, jnp.zeros(x.shape, x.dtype)).get('params', {})

  def from_torch(self, state_dict):
    """Converts the official or the diffusers layout, strictly."""
    levels = len(self.module.multipliers)
    entries = vae_layouts.official_names(state_dict, levels)
    return convert.from_torch(self.module, entries, drop=vae_layouts.FOREIGN)

  def moving(self):
    """Returns it for a run in which it learns: no latents of it are stored."""
    return dataclasses.replace(self, stored=False)

  def fetch(self, source=None):
    """Returns the local weight file of a path or hub id; default: its own."""
    if self.source is None:
      raise errors.UsageError(f'{self.name} has no weights; got {source!r}')
    if not (source or self.source):
      raise errors.UsageError(
          f'no weights of {self.name} are published: give a path or hub id'
      )
    return files.fetch(source or self.source, self.filename)

  def load(self, source=None):
    """Reads parameters from a path or hub id; default: its own."""
    if self.source is None and not source:
      return {}
    return self.from_torch(files.read(self.fetch(source)))

  def encode(self, params, images):
    """Maps uint8 images [b H W 3] to moments [b h w 2c], float32."""
    if images.dtype != jnp.uint8:
      raise errors.DataError(f'images must be uint8 0..255, not {images.dtype}')
    if images.shape[1] % self.factor or images.shape[2] % self.factor:
      raise errors.DataError(
          f'images of {images.shape[1]}x{images.shape[2]} pixels: {self.name}'
          f' needs sides that are multiples of {self.factor}'
      )
    x = images.astype(jnp.float32) / 127.5 - 1
    return self.module.apply({'params': params}, x, method='moments')

  def decode(self, params, z):
    """Maps latents [b h w c] to images [b H W 3], float32 in [-1, 1]."""
    x = self.module.apply({'params': params}, z, method='decode')
    return jnp.clip(x, -1, 1)


SD_SCALE = 0.18215  # of Stable Diffusion's first stage, for every channel
SD = {'bias': (0.0,) * 4, 'scale': (SD_SCALE,) * 4}
F16D32 = {
    'multipliers': (1, 1, 2, 2, 4),
    'channels': 32,
    'attention_levels': (4,),
}
SAFETENSORS = 'diffusion_pytorch_model.safetensors'
IREPA = 'REPA-E/iREPA-collections'

STATISTICS = ('latents_bias', 'latents_scale')

AUTOENCODERS = {
    'sd-vae-ft-mse': Autoencoder(
        'sd-vae-ft-mse',
        vae.VAE(),
        'stabilityai/sd-vae-ft-mse',
        SAFETENSORS,
        **SD,
    ),
    'sd-vae-ft-ema': Autoencoder(
        'sd-vae-ft-ema',
        vae.VAE(),
        'stabilityai/sd-vae-ft-ema',
        SAFETENSORS,
        **SD,
    ),
    'sd-vae-f8d4': Autoencoder(
        'sd-vae-f8d4',
        vae.VAE(),
        IREPA,
        'pretrained_models/sdvae-ft-mse-f8d4.pt',
        **SD,
    ),
    'vae-f16d32': Autoencoder(
        'vae-f16d32', vae.VAE(**F16D32), 'REPA-E/e2e-invae', 'e2e-invae-400k.pt'
    ),
    # For the digits of the quickstart: 16 pixels to 8x8x4.
    'vae-digits': Autoencoder(
        'vae-digits', vae.VAE(width=32, multipliers=(1, 1), blocks=1), ''
    ),
    'haar': Autoencoder('haar', haar.Haar(), grey=True),
    'pixels': Autoencoder(
        'pixels',
        pixels.Pixels(),
        bias=(0.0,) * 3,
        scale=(1.0,) * 3,
        stored=False,
    ),
}


def create(name, **overrides):
  """Returns an autoencoder; overrides are fields of its module."""
  if name not in AUTOENCODERS:
    near = difflib.get_close_matches(name, AUTOENCODERS, n=1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    known = ' '.join(AUTOENCODERS)
    raise errors.UsageError(
        f'unknown autoencoder {name!r}; {hint}known: {known}'
    )
  entry = AUTOENCODERS[name]
  module = entry.module.clone(**overrides)
  if module.channels != entry.channels:
    entry = dataclasses.replace(entry, bias=None, scale=None)
  return dataclasses.replace(entry, module=module)


def read_statistics(path, channels=None):
  """Returns (bias, scale) per channel from an official latents-stats file.

  channels: that there must be. Raises DataError for anything else in the file.
  """
  content = files.read(path)
  try:
    entries = state_dicts.mapping(content)
    bias, scale = (_per_channel(entries, name) for name in STATISTICS)
  except errors.DataError as error:
    raise errors.DataError(f'{path}: {error}') from error
  if len({len(bias), len(scale), channels or len(bias)}) > 1:
    raise errors.DataError(
        f'{path} is for latents of {len(bias)} and {len(scale)} channels'
        + (f', not of {channels}' if channels else '')
    )
  if not all(scale):
    raise errors.DataError(f'{path}: latents_scale is {scale}; never 0')
  return bias, scale


def _per_channel(entries, name):
  """Returns one of the two vectors as numbers."""
  if name not in entries:
    raise errors.DataError(
        f'no {name} among {", ".join(sorted(entries)[:6]) or "nothing"};'
        f' expected {" and ".join(STATISTICS)}'
    )
  try:
    values = np.asarray(entries[name], np.float64).ravel()
  except (TypeError, ValueError):
    values = np.zeros(0)
  if not values.size or not np.isfinite(values).all():
    raise errors.DataError(
        f'{name} is {state_dicts.kind(entries[name])}; expected finite numbers,'
        ' one per channel'
    )
  return tuple(values.tolist())
