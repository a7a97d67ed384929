"""The options of irepa_jax.tools.prepare: fields, flags, and their check."""

import dataclasses

from absl import flags

from irepa_jax import errors
from irepa_jax.data import images


def _option(default, text):
  return dataclasses.field(default=default, metadata={'help': text})


@dataclasses.dataclass(frozen=True)
class Options:
  """How a data set is prepared; the flags of the command."""

  image_size: int = _option(256, 'Side of the crop in pixels.')
  autoencoder: str = _option(
      'sd-vae-ft-mse', 'Its name; none keeps images without latents.'
  )
  weights: str = _option(
      '', 'Of the autoencoder: path or hub id; empty is its published source.'
  )
  statistics: str = _option(
      '',
      'Bias and scale of the latents: an official latents-stats file; empty is'
      ' what is published for the autoencoder, or else measured.',
  )
  flip: bool = _option(
      False, 'Also store the latents and features of the mirror images.'
  )
  image_format: str = _option('jpeg', 'jpeg, png, or none to keep no images.')
  encoder: tuple = _option((), 'Encoders whose tokens are stored: a,b.')
  encoder_weights: tuple = _option(
      (), 'A path or hub id for each; empty is their published sources.'
  )
  encoder_dtype: str = _option('bfloat16', 'In which tokens are computed.')
  num_classes: int = _option(
      0, 'That the source must have; 0 takes what it has.'
  )
  shard_size: int = _option(4096, 'Images of the source per shard.')
  batch_size: int = _option(32, 'Images per device at a time.')
  threads: int = _option(0, 'Threads that read images; 0 is one per core.')
  on_error: str = _option(
      'skip', 'Unreadable images: skip (they are listed) or fail.'
  )
  max_skipped: float = _option(
      1e-3, 'Share of unreadable images above which the command fails.'
  )
  max_images: int = _option(0, 'Only the first so many; 0 is all.')


def checked(**fields):
  """Returns Options; raises UsageError for values that are none."""
  options = Options(**fields)
  for name, allowed in (
      ('image_format', (*images.FORMATS, 'none')),
      ('on_error', ('skip', 'fail')),
      ('encoder_dtype', ('float32', 'bfloat16')),
  ):
    if getattr(options, name) not in allowed:
      raise errors.UsageError(
          f'{name}={getattr(options, name)!r}: one of {", ".join(allowed)}'
      )
  for name in ('image_size', 'shard_size', 'batch_size'):
    if getattr(options, name) < 1:
      raise errors.UsageError(f'{name}={getattr(options, name)}: 1 or more')
  return options


def define_flags():
  """Defines a flag for the source, the folder and every option."""
  flags.DEFINE_string('source', None, 'Where the images come from.')
  flags.DEFINE_string('out', None, 'Folder of the data set.')
  flags.mark_flags_as_required(['source', 'out'])
  define = {
      bool: flags.DEFINE_bool,
      int: flags.DEFINE_integer,
      float: flags.DEFINE_float,
      str: flags.DEFINE_string,
      tuple: flags.DEFINE_list,
  }
  for field in dataclasses.fields(Options):
    default = field.default or None if field.type is tuple else field.default
    define[field.type](field.name, default, field.metadata['help'])


def from_flags():
  """Returns the values of the flags as fields of Options."""
  fields = dataclasses.fields(Options)
  options = {field.name: flags.FLAGS[field.name].value for field in fields}
  for name in ('encoder', 'encoder_weights'):
    options[name] = tuple(options[name] or ())
  return options
