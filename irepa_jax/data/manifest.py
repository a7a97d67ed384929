"""What a data set holds: manifest.json, and whether it fits an experiment.

Latents are drawn from the stored moments, z = mean + std * noise, and enter the
model as x = (z - bias) * scale per channel. The manifest states the mean and
standard deviation of z measured over the set, so that x can be promised to have
a standard deviation near 1 before anything is compiled.
"""

import dataclasses
import json
import pathlib

import numpy as np

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.data import records
from irepa_jax.data import sound
from irepa_jax.names import file_names

NAME = 'manifest.json'
VERSION = 1
SUFFIX = '.array_record'
# Latents that enter the model: SD-VAE at 0.18215 has channels of 0.8 to 1.1.
STD_RANGE = (0.4, 2.5)
MEAN_LIMIT = 2.0
SAMPLE_RANGE = (0.5, 2.0)  # of some records against the whole set


@dataclasses.dataclass(frozen=True)
class Features:
  """Cached tokens of one encoder."""

  name: str
  sha256: str  # of its weights; empty where it has none
  shape: tuple  # n d


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The contents of a data set; see DESIGN of the format in docs/data.md."""

  count: int
  image_size: int
  image_format: str  # jpeg, png, none
  num_classes: int
  class_names: tuple  # by label; empty where the source has none
  label_range: tuple  # smallest and largest label
  autoencoder: str  # none: images only
  autoencoder_sha256: str  # of its weights; empty where it has none
  moments_shape: tuple  # h w 2c; empty without an autoencoder
  latent_mean: tuple  # of z, per channel
  latent_std: tuple
  bias: tuple  # default of x = (z - bias) * scale, per channel
  scale: tuple
  encoders: tuple  # of Features
  shards: tuple  # of records.Shard
  flips: tuple  # mirrored records, in the order of `shards`
  skipped: int  # unreadable images, listed in skipped.txt
  settings: dict  # of the preparation
  coloured: int = 0  # images whose colours the autoencoder has dropped
  version: int = VERSION


def write(folder, manifest):
  """Writes FOLDER/manifest.json whole or not at all."""
  fields = dataclasses.asdict(manifest)
  for name in ('shards', 'flips'):
    fields[name] = [shard._asdict() for shard in getattr(manifest, name)]
  data = json.dumps(fields, indent=1).encode()
  records.write_bytes(pathlib.Path(folder) / NAME, data)


def read(folder):
  """Reads FOLDER/manifest.json; DataError says what the folder holds instead."""
  check_local(folder)
  path = pathlib.Path(folder) / NAME
  if not path.is_file():
    raise errors.DataError(_missing(pathlib.Path(folder)))
  data = path.read_bytes()
  try:
    fields = json.loads(data)
    version = fields.pop('version')
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.DataError(
        f'{path} ({len(data)} bytes) is no manifest; {images.head(data)}'
    ) from error
  if version != VERSION:
    raise errors.DataError(
        f'{path} has format {version}, this version reads {VERSION}; prepare'
        ' the data set again'
    )
  return _parse(fields, path)


def check_local(folder):
  """Raises DataError for a bucket: records are written to a local folder."""
  if '://' in str(file_names.check(folder)):
    raise errors.DataError(
        f'data set {folder}: records are written to a local or mounted folder;'
        f' copy it then: gcloud storage cp -r FOLDER {folder}'
    )


def of_images(manifest, name, channels, *, cached=False):
  """Returns the manifest as a model on pixels sees it: images and labels.

  Latents that stand beside the images are left out, so that images are mirrored
  where they are read and need no records of their own; with cached features
  they do.

  Args:
    manifest: of the data set.
    name: of the autoencoder that stands for pixels.
    channels: of an image.
    cached: whether the cached features are wanted.
  """
  if manifest.image_format == 'none':
    raise errors.DataError(
        f'the records hold no images, which a model on {name} reads; prepare'
        ' with --image_format=jpeg or png'
    )
  return dataclasses.replace(
      manifest,
      autoencoder=name,
      autoencoder_sha256='',
      moments_shape=(),
      latent_mean=(),
      latent_std=(),
      bias=(0.0,) * channels,
      scale=(1.0,) * channels,
      encoders=manifest.encoders if cached else (),
      flips=manifest.flips if cached else (),
  )


def check(
    manifest,
    *,
    image_size=None,
    num_classes=None,
    autoencoder=None,
    autoencoder_sha256='',
    latent_shape=None,
    bias=None,
    scale=None,
    encoders=(),
    cached=False,
    images_needed=False,
    flips=False,
    drop_colours=True,
):
  """Raises DataError where a data set contradicts an experiment.

  Args:
    manifest: of the data set.
    image_size: pixels; None here and below is not compared.
    num_classes: labels must be smaller, and as many as the source has.
    autoencoder: name, and `autoencoder_sha256` of its weights where known.
    latent_shape: (h, w, c) that the model takes.
    bias: and `scale`, per channel, of x = (z - bias) * scale.
    encoders: (name, sha256) of the alignment targets, in order.
    cached: the targets are read from the records.
    images_needed: an encoder or the model reads the images.
    flips: mirrored records are wanted.
    drop_colours: whether latents of brightness alone will do.
  """
  _check_images(manifest, image_size, images_needed)
  _check_labels(manifest, num_classes)
  _check_autoencoder(manifest, autoencoder, autoencoder_sha256)
  _check_latents(manifest, latent_shape)
  if scale is not None:
    _check_scale(manifest, np.asarray(bias), np.asarray(scale))
  if cached:
    _check_encoders(manifest, encoders)
  if flips:
    check_flips(manifest)
  if manifest.coloured and not drop_colours:
    raise errors.DataError(
        f'{manifest.coloured:,} of {manifest.count:,} images have colours, and'
        f' {manifest.autoencoder!r} keeps brightness alone: samples would be'
        ' grey. Prepare with another autoencoder, or set'
        ' --config.drop_colours=true'
    )


def check_flips(manifest):
  """Raises DataError where examples cannot be mirrored: images alone can."""
  if not manifest.flips and (manifest.moments_shape or manifest.encoders):
    raise errors.DataError(
        'the data set holds no mirrored latents or features; prepare it with'
        ' --flip or set flips=False'
    )


def places(manifest, names):
  """Returns where the tokens of encoders stand in a record; True is all."""
  stored = [item.name for item in manifest.encoders]
  return range(len(stored)) if names is True else [*map(stored.index, names)]


def check_moments(manifest, moments):
  """Raises DataError where moments [n h w 2c] do not fit the manifest."""
  mean, std = np.split(np.float64(moments), 2, axis=-1)
  seen = _spread(np.mean(mean), np.mean(mean**2 + std**2))
  means, stds = np.array(manifest.latent_mean), np.array(manifest.latent_std)
  stated = _spread(np.mean(means), np.mean(means**2 + stds**2))
  low, high = SAMPLE_RANGE
  if not low * stated <= seen <= high * stated:
    raise errors.DataError(
        f'latents have a standard deviation of {seen:.3g}, the manifest says'
        f' {stated:.3g}: the shards are not those that it describes'
    )


def check_label(label, num_classes):
  """Raises DataError for a label that the model has no embedding for."""
  if not 0 <= label < num_classes:
    raise errors.DataError(f'label {label} out of range [0, {num_classes})')


def check_pixels(manifest, pixels):
  """Raises DataError for an image [h w 3] of another size."""
  size = manifest.image_size
  if pixels.shape != (size, size, 3):
    raise errors.DataError(
        f'image of {pixels.shape[1]}x{pixels.shape[0]} pixels, the manifest'
        f' says {size}x{size}'
    )


def _check_images(manifest, image_size, images_needed):
  if image_size is not None and manifest.image_size != image_size:
    raise errors.DataError(
        f'images are {manifest.image_size} pixels wide; the config wants'
        f' image_size={image_size}'
    )
  if images_needed and manifest.image_format == 'none':
    raise errors.DataError(
        'the records hold no images, which the encoder or the model reads;'
        ' prepare with --image_format=jpeg, or use cached features'
    )


def _check_labels(manifest, num_classes):
  if num_classes is None:
    return
  low, high = manifest.label_range
  if low < 0 or high >= num_classes:
    raise errors.DataError(
        f'labels span {low}..{high}; the config has num_classes={num_classes}'
    )
  if manifest.num_classes != num_classes:
    raise errors.DataError(
        f'the data set has {manifest.num_classes} classes; the config has'
        f' num_classes={num_classes}'
    )


def _check_autoencoder(manifest, name, sha256):
  if name is None:
    return
  if manifest.autoencoder == 'none' != name:
    raise errors.DataError(
        f'the records hold no latents; the config has autoencoder {name!r}:'
        f' prepare with --autoencoder={name}, or train on the images with'
        ' autoencoder=pixels and a JiT'
    )
  if manifest.autoencoder != name:
    raise errors.DataError(
        f'latents were made by autoencoder {manifest.autoencoder!r}; the config'
        f' has {name!r}'
    )
  known = manifest.autoencoder_sha256
  if known and sha256 and known != sha256:
    raise errors.DataError(
        f'latents were made by {name!r} weights with sha256 {known[:16]}; the'
        f' config loads {sha256[:16]}'
    )


def _check_latents(manifest, shape):
  if shape is None:
    return
  stored = tuple(manifest.moments_shape)
  if not stored:
    raise errors.DataError(
        f'the records hold no latents; the config wants {tuple(shape)}: prepare'
        ' with --autoencoder'
    )
  latents = (*stored[:2], stored[2] // 2)
  if latents != tuple(shape):
    raise errors.DataError(
        f'latents are {latents} of {manifest.autoencoder!r} at'
        f' {manifest.image_size} pixels; the config wants {tuple(shape)}'
    )


def _check_scale(manifest, bias, scale):
  """Refuses latents that would enter the model far from unit scale."""
  std = np.array(manifest.latent_std) * scale
  mean = (np.array(manifest.latent_mean) - bias) * scale
  low, high = STD_RANGE
  inside = (low < std) & (std < high) & (np.abs(mean) < MEAN_LIMIT)
  if not np.all(inside):
    raise errors.DataError(
        'latents would enter the model with standard deviation'
        f' {_numbers(std)} and mean {_numbers(mean)} per channel, not near 1'
        f' and 0; of this data set bias={_numbers(manifest.bias)} and'
        f' scale={_numbers(manifest.scale)}'
    )


def _check_encoders(manifest, encoders):
  stored = {item.name: item for item in manifest.encoders}
  wanted = [name for name, _ in encoders]
  if not stored.keys() >= set(wanted):
    raise errors.DataError(
        f'cached features are of {list(stored) or "no encoder"}; the config wants'
        f' {wanted}: prepare with --encoder={",".join(wanted)}'
    )
  for name, sha256 in encoders:
    item = stored[name]
    if item.sha256 and sha256 and item.sha256 != sha256:
      raise errors.DataError(
          f'cached features of {name!r} come from weights with sha256'
          f' {item.sha256[:16]}; the config loads {sha256[:16]}'
      )


def _parse(fields, path):
  try:
    shards = {
        name: tuple(records.Shard(**item) for item in fields.pop(name))
        for name in ('shards', 'flips')
    }
    features = tuple(
        Features(**{**item, 'shape': tuple(item['shape'])})
        for item in fields.pop('encoders')
    )
    fields = {k: _tuple(v) for k, v in fields.items()}
    manifest = Manifest(**fields, **shards, encoders=features)
  except (TypeError, KeyError) as error:
    raise errors.DataError(f'{path} is not complete: {error}') from error
  sound.check(manifest, path)
  return manifest


def _tuple(value):
  return tuple(value) if isinstance(value, list) else value


def _missing(folder):
  if not folder.is_dir():
    return f'data set {folder} not found; make it with irepa_jax.tools.prepare'
  shards = len(list(folder.glob(f'*{SUFFIX}')))
  if shards:
    return (
        f'{folder} has {shards} shards but no {NAME}: the preparation is not'
        ' finished; run the same irepa_jax.tools.prepare command again'
    )
  names = sorted(path.name for path in folder.iterdir())[:3]
  return (
      f'no {NAME} under {folder} (found {", ".join(names) or "nothing"}); make'
      ' the data set with irepa_jax.tools.prepare'
  )


def _spread(mean, square):
  return np.sqrt(max(square - mean**2, 0.0))


def _numbers(values):
  return '[' + ' '.join(f'{value:.3g}' for value in values) + ']'
