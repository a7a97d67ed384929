"""How a data set is prepared: the options, and their check."""

import dataclasses

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.jobs import options

NO_LATENTS = ('none', 'pixels')  # images alone, for models on pixels


@dataclasses.dataclass(frozen=True)
class Options:
  """How a data set is prepared; the flags of the command."""

  image_size: int = options.option(256, 'Side of the crop in pixels.')
  autoencoder: str = options.option(
      'sd-vae-ft-mse',
      'Its name; pixels (or none) keeps images alone; haar drops colours.',
  )
  weights: str = options.option(
      '', 'Of the autoencoder: path or hub id; empty is its published source.'
  )
  statistics: str = options.option(
      '',
      'Bias and scale of the latents: an official latents-stats file; empty is'
      ' what is published for the autoencoder, or else measured.',
  )
  flip: bool = options.option(
      False, 'Also store the latents and features of the mirror images.'
  )
  image_format: str = options.option(
      'jpeg', 'jpeg, png, or none to keep no images.'
  )
  encoder: tuple = options.option((), 'Encoders whose tokens are stored: a,b.')
  encoder_weights: tuple = options.option(
      (), 'A path or hub id for each; empty is their published sources.'
  )
  encoder_dtype: str = options.option(
      'bfloat16', 'In which tokens are computed.'
  )
  num_classes: int = options.option(
      0, 'That the source must have; 0 takes what it has.'
  )
  shard_size: int = options.option(4096, 'Images of the source per shard.')
  batch_size: int = options.option(32, 'Images per device at a time.')
  threads: int = options.option(
      0, 'Threads that read images; 0 is one per core.'
  )
  on_error: str = options.option(
      'skip', 'Unreadable images: skip (they are listed) or fail.'
  )
  max_skipped: float = options.option(
      1e-3, 'Share of unreadable images above which the command fails.'
  )
  max_images: int = options.option(0, 'Only the first so many; 0 is all.')


def checked(**fields):
  """Returns Options; raises UsageError for values that are none."""
  chosen = Options(**fields)
  for name, allowed in (
      ('image_format', (*images.FORMATS, 'none')),
      ('on_error', ('skip', 'fail')),
      ('encoder_dtype', ('float32', 'bfloat16')),
  ):
    if getattr(chosen, name) not in allowed:
      raise errors.UsageError(
          f'{name}={getattr(chosen, name)!r}: one of {", ".join(allowed)}'
      )
  if chosen.autoencoder == 'pixels' and chosen.image_format == 'none':
    raise errors.UsageError(
        "image_format='none' with autoencoder='pixels' keeps nothing: jpeg or png"
    )
  for name in ('image_size', 'shard_size', 'batch_size'):
    if getattr(chosen, name) < 1:
      raise errors.UsageError(f'{name}={getattr(chosen, name)}: 1 or more')
  for name in ('threads', 'num_classes', 'max_images'):
    if getattr(chosen, name) < 0:
      raise errors.UsageError(f'{name}={getattr(chosen, name)}: 0 or more')
  if not 0 <= chosen.max_skipped <= 1:
    raise errors.UsageError(f'max_skipped={chosen.max_skipped}: from 0 to 1')
  return chosen
