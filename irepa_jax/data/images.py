"""Image files to training crops: RGB, the ADM centre crop, JPEG and PNG.

The crop is the one of guided-diffusion (ADM), which DiT, SiT, REPA and iREPA
share: halve with a box filter while the short side is at least twice the
target, scale the short side to the target with PIL's bicubic filter, cut the
centre. As there, every file becomes RGB (grey, palette and CMYK files too) and
the orientation tag of EXIF is ignored: the pixels are taken as they are stored.
"""

import io
from typing import NamedTuple

import numpy as np
import PIL.Image

from irepa_jax import errors

FORMATS = {'jpeg': 'JPEG', 'png': 'PNG'}
JPEG_QUALITY = 95  # about 32 GB for ImageNet at 256 pixels
# What PIL raises on damaged files, seen over its JPEG, PNG, GIF, TIFF readers.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    PIL.Image.DecompressionBombError,
)


class Crop(NamedTuple):
  """One training image."""

  pixels: np.ndarray  # uint8 [s s 3]
  encoded: bytes  # JPEG or PNG of the pixels; empty where none is kept
  enlarged: bool  # the original is smaller than the crop


def decode(data):
  """Decodes the bytes of an image file to uint8 [h w 3]."""
  return np.asarray(_open(data))


def crop(image, size, image_format):
  """Cuts the ADM crop out of an image file or a uint8 array [h w 3].

  Args:
    image: bytes of an image file, or pixels.
    size: side of the crop in pixels.
    image_format: jpeg, png or none; how the crop is kept.

  A file that already is such a crop keeps its bytes, so that nothing is
  compressed a second time.
  """
  picture = _open(image) if _is_file(image) else PIL.Image.fromarray(image)
  pixels = center_crop(picture, size)
  if _is_file(image) and _is_crop(image, size, image_format):
    encoded = bytes(image)
  else:
    encoded = encode(pixels, image_format)
  return Crop(pixels, encoded, min(picture.size) < size)


def center_crop(picture, size):
  """Returns the ADM centre crop of an RGB PIL image as uint8 [s s 3]."""
  while min(picture.size) >= 2 * size:
    half = tuple(side // 2 for side in picture.size)
    picture = picture.resize(half, PIL.Image.Resampling.BOX)
  scale = size / min(picture.size)
  scaled = tuple(round(side * scale) for side in picture.size)
  picture = picture.resize(scaled, PIL.Image.Resampling.BICUBIC)
  left, top = ((side - size) // 2 for side in picture.size)
  return np.asarray(picture.crop((left, top, left + size, top + size)))


def encode(pixels, image_format):
  """Encodes uint8 [h w 3] as JPEG (quality 95) or PNG; none gives b''."""
  if image_format == 'none':
    return b''
  file = io.BytesIO()
  settings = {'quality': JPEG_QUALITY} if image_format == 'jpeg' else {}
  PIL.Image.fromarray(pixels).save(file, FORMATS[image_format], **settings)
  return file.getvalue()


def head(data):
  """Says what the first bytes of a file that is no image or shard look like."""
  start = bytes(data[:48])
  if start.startswith(b'version https://git-lfs'):
    return 'a git-lfs pointer: run `git lfs pull`'
  if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
    return 'a web page, not the file: download it again'
  return f'it begins with {start[:16]!r}' if start else 'it is empty'


def _is_file(image):
  return isinstance(image, (bytes, bytearray, memoryview))


def _open(data):
  try:
    with PIL.Image.open(io.BytesIO(data)) as picture:
      return picture.convert('RGB')
  except PIL.UnidentifiedImageError as error:  # its text is an address
    raise errors.DataError(
        f'unreadable image of {len(data)} bytes: {head(data)}'
    ) from error
  except UNREADABLE as error:
    raise errors.DataError(
        f'unreadable image of {len(data)} bytes ({head(data)}): {error}'
    ) from error


def _is_crop(data, size, image_format):
  with PIL.Image.open(io.BytesIO(data)) as picture:
    return (
        picture.format == FORMATS.get(image_format)
        and picture.size == (size, size)
        and picture.mode == 'RGB'
    )
