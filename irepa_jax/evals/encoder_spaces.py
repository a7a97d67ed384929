"""Feature spaces of the encoders: FD-DINOv2, CMMD's CLIP, or any of the zoo.

  dinov2   FD-DINOv2 of Stein et al. 2023, arXiv 2306.04675: the class token of
           DINOv2 ViT-L/14 after its last norm, images at 224 pixels
  clip     CMMD of Jayasumana et al. 2024, arXiv 2401.09603: the projected image
           embedding of CLIP ViT-L/14 at 336 pixels
  NAME     an encoder by its name, as alignment sees the images: the mean of its
           patch tokens. No published figure uses this; it is for comparisons
           within one project.

Both published spaces resize with PIL's bicubic filter, which is the antialiased
cubic with a = -0.5 in whole grey levels, one axis after the other; the same is
done here on the device, to the last level.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import resize
from irepa_jax.encoders import pixels
from irepa_jax.evals import spaces
from irepa_jax.weights import files
from irepa_jax.weights import state_dicts

DINOV2 = 'dinov2-vit-l'
CLIP = 'clip-vit-L'
CLIP_SOURCE = 'openai/clip-vit-large-patch14-336'
DINOV2_RESOLUTION = 256  # gives the 16 x 16 patches of 224 pixels
CLIP_RESOLUTION = 384  # gives the 24 x 24 patches of 336 pixels
# Where CLIP files keep the projection; whether as [width, embedding].
PROJECTIONS = {
    'visual_projection.weight': False,
    'visual.proj': True,
    'proj': True,
}


def open_(text, *, side=None, mesh=None) -> spaces.Space:
  """Returns the space of NAME or NAME@WEIGHTS: dinov2, clip, or an encoder.

  side: (height, width) of the images; encoders need it, and need squares.
  """
  name, _, source = text.partition('@')
  if name in PUBLISHED:
    return PUBLISHED[name](source or None, mesh=mesh)
  if side is None or side[0] != side[1]:
    raise errors.UsageError(
        f'the space of {name} needs square images of a known size, not'
        f' {side or "unknown"}'
    )
  return encoder(name, source or None, resolution=side[0], mesh=mesh)


def encoder(name, source=None, *, resolution, mesh=None) -> spaces.Space:
  """Returns the space of an encoder: 'pool', the mean of its patch tokens.

  Args:
    name: of the zoo.
    source: of its weights, a path or hub id; None is the published one.
    resolution: side of the images, in pixels.
    mesh: on which every device gets the weights; None is one device.
  """
  network = encoders.create(name, resolution=resolution)
  path = _fetch(network, source)
  params = network.load(path) if path else {}

  def features(params, images):
    return {'pool': network.encode(params, images).mean(axis=1)}

  return _space(name, path, resolution, features, params, mesh)


def dinov2(source=None, *, mesh=None, **overrides) -> spaces.Space:
  """Returns the space of FD-DINOv2: 'pool', the class token [b 1024].

  The position table goes to 16 x 16 as in DINOv2's own code. overrides: fields
  of the network, for networks that are not the ViT-L.
  """
  network = encoders.create(DINOV2, resolution=DINOV2_RESOLUTION, **overrides)
  spec = dataclasses.replace(
      network.spec, table='cubic075_offset', pixels=pixels.Pixels()
  )
  network = dataclasses.replace(network, spec=spec)
  path = _fetch(network, source)
  features = lambda params, images: {
      'pool': class_token(network, params, images)
  }
  return _space('dinov2', path, None, features, network.load(path), mesh)


def clip(source=None, *, mesh=None, **overrides) -> spaces.Space:
  """Returns the space of CMMD: 'embedding' [b 768], not yet of unit length.

  source: of the whole CLIP or its image part with the projection.
  """
  network = encoders.create(
      CLIP, resolution=CLIP_RESOLUTION, final_norm=True, **overrides
  )
  spec = dataclasses.replace(
      network.spec,
      source=CLIP_SOURCE,
      file=None,
      pixels=pixels.Pixels(mean_std=pixels.CLIP),
  )
  network = dataclasses.replace(network, spec=spec)
  path = _fetch(network, source)
  params = {'image': network.load(path), 'proj': projection(path)}

  def features(params, images):
    token = class_token(network, params['image'], images)
    return {'embedding': jnp.matmul(token, params['proj'], precision='highest')}

  return _space('clip', path, None, features, params, mesh)


PUBLISHED = {'dinov2': dinov2, 'clip': clip}


def class_token(network, params, images):
  """Returns the first token [b width] of images uint8 [b h w 3], float32."""
  x = pil_bicubic(images, network.side)
  x = pixels.prepare(x, network.side, network.spec.pixels)
  return network.module.apply({'params': params}, x)[:, 0]


def pil_bicubic(images, side):
  """Resizes [b h w 3] to whole grey levels [b side side 3], float32.

  As PIL (Resample.c), in whole numbers of 2**-22 and exactly: the high and the
  low half of the weights give sums that float32 holds.
  """
  x = jnp.asarray(images, jnp.float32)
  for axis in (2, 1):  # PIL's order
    weight = resize.matrix(x.shape[axis], side, 'cubic05aa')
    high, low = np.divmod(np.rint(weight * 2**22), 2**11)
    x = jnp.moveaxis(x, axis, -1)
    high, low = (
        jnp.matmul(x, part.T.astype(np.float32), precision='highest')
        for part in (high, low)
    )
    whole = high.astype(jnp.int32) * 2**11 + low.astype(jnp.int32)
    x = jnp.clip((whole + 2**21) >> 22, 0, 255).astype(jnp.float32)
    x = jnp.moveaxis(x, -1, axis)
  return x


def projection(path):
  """Reads the projection of CLIP's image part, [width embedding]."""
  tensors = state_dicts.mapping(files.read(path), str(path))
  for key, as_is in PROJECTIONS.items():
    if key in tensors:
      only = state_dicts.arrays({key: tensors[key]}, str(path))
      matrix = np.asarray(only[key], np.float32)
      return matrix if as_is else matrix.T
  raise errors.DataError(
      f'{path} holds no projection of CLIP ({", ".join(PROJECTIONS)}), which'
      ' CMMD is defined on'
  )


def _fetch(network, source):
  """Returns the local weight file, or None for an encoder without weights."""
  spec = network.spec
  if not spec.layouts:
    return None
  return files.fetch(source or spec.source, None if source else spec.file)


def _space(name, path, resolution, features, params, mesh):
  sha256 = files.sha256(path) if path else ''
  extract = functools.partial(
      spaces.by_chunks(features, mesh), spaces.place(params, mesh)
  )
  return spaces.Space(name, sha256, resolution, extract)
