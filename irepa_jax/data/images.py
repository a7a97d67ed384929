"""Image files to training crops: RGB, the ADM centre crop, JPEG and PNG.

The crop is the one of guided-diffusion (ADM), which DiT, SiT, REPA and iREPA
share: halve with a box filter while the short side is at least twice the
target, scale the short side to the target with PIL's bicubic filter, cut the
centre. As there, every file becomes RGB and the orientation tag of EXIF is
ignored: the pixels are taken as they are stored, without the opacity and
without colour profiles. docs/data.md states the rule for every kind of file.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
import PIL.Image

from irepa_jax import errors

FORMATS = {'jpeg': 'JPEG', 'png': 'PNG'}
JPEG_QUALITY = 95  # about 32 GB for ImageNet at 256 pixels
# What is opened, by PIL's names. Others (EPS, PSD, FITS ...) are documents or
# measurements, and some readers of them start other programs.
READ = (
    'JPEG', 'MPO', 'PNG', 'GIF', 'WEBP', 'BMP', 'DIB', 'TIFF', 'PPM', 'AVIF',
    'JPEG2000', 'QOI', 'TGA',
)  # fmt: skip
# Endings of their files, matched without case.
EXTENSIONS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.gif', '.webp',
    '.bmp', '.dib', '.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm', '.avif',
    '.avifs', '.jp2', '.j2k', '.jpf', '.jpx', '.jpc', '.j2c', '.qoi', '.tga',
)  # fmt: skip
DEEP = ('I;16', 'I;16L', 'I;16B', 'I;16N')  # greys of 9 to 16 bits
DEEP_IN_I = ('PNG', 'PPM')  # files whose greys PIL has as 0..65535 in mode I
TIFF_BITS, TIFF_WHITE_IS_ZERO = 258, 262  # tags; 262 is 0 where white is
PREMULTIPLIED = {'La': 'LA', 'RGBa': 'RGBA'}
REFUSED = {
    'F': 'greys in floating point',
    'I': 'greys in 32 bits or with a sign',
    'LAB': 'colours in Lab',
}
# Beyond this aspect ratio the whole picture is not scaled before it is cut.
LONG = 16


TINT = 2.0  # grey levels between channels, on average, that are no colour


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
  if max(scaled) > LONG * size:
    return _scaled_centre(picture, scaled, size)
  picture = picture.resize(scaled, PIL.Image.Resampling.BICUBIC)
  left, top = ((side - size) // 2 for side in picture.size)
  return np.asarray(picture.crop((left, top, left + size, top + size)))


def to_rgb(picture):
  """Returns a PIL image of any mode in RGB, 8 bits; DataError names the mode.

  Of more than 8 bits the upper eight are kept, of the opacity nothing.
  """
  mode = picture.mode
  if mode in DEEP or (mode == 'I' and picture.format in DEEP_IN_I):
    picture = PIL.Image.fromarray(_upper_bits(picture))
  elif mode in REFUSED:
    raise errors.DataError(
        f'{REFUSED[mode]} (mode {mode}) have no agreed black and white: save as'
        ' 8 or 16 bits'
    )
  elif mode in PREMULTIPLIED:
    picture = picture.convert(PREMULTIPLIED[mode])
  elif 'transparency' in picture.info:  # PIL warns of palettes without this
    picture = picture.convert('RGBA')
  return picture.convert('RGB')


def coloured(pixels):
  """Whether uint8 [h w 3] has colours that one would miss in grey."""
  levels = pixels.astype(np.int16)
  return bool((levels.max(-1) - levels.min(-1)).mean() > TINT)


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
    with open_(io.BytesIO(data)) as picture:
      return to_rgb(picture)
  except errors.DataError:
    raise
  except PIL.UnidentifiedImageError as error:  # its text is an address
    raise errors.DataError(
        f'unreadable image of {len(data)} bytes: {head(data)}'
    ) from error
  except Exception as error:  # of a damaged file: whatever its decoder raises
    raise errors.DataError(
        f'unreadable image of {len(data)} bytes ({head(data)}):'
        f' {type(error).__name__}: {error}'
    ) from error


def open_(file):
  """Opens a file or path with PIL, if it is of a kind in READ."""
  return PIL.Image.open(file, formats=_readers())


@functools.cache
def _readers():
  """Returns those of READ that this PIL was built with."""
  PIL.Image.init()
  return tuple(name for name in READ if name in PIL.Image.OPEN)


def _upper_bits(picture):
  """Returns the upper eight bits of deep greys as uint8 [h w]."""
  tags = getattr(picture, 'tag_v2', {})
  bits = tags.get(TIFF_BITS, (16,))[0]
  picture.load()
  grey = (np.asarray(picture) >> (bits - 8)).astype(np.uint8)
  return ~grey if tags.get(TIFF_WHITE_IS_ZERO) == 0 else grey


def _scaled_centre(picture, scaled, size):
  """Returns the centre of a scaled picture without making the rest of it."""
  box = []
  for side, length in zip(picture.size, scaled, strict=True):
    start, step = (length - size) // 2, side / length
    box.append((start * step, min((start + size) * step, side)))
  (left, right), (top, bottom) = box
  cut = picture.resize(
      (size, size), PIL.Image.Resampling.BICUBIC, (left, top, right, bottom)
  )
  return np.asarray(cut)


def _is_crop(data, size, image_format):
  with open_(io.BytesIO(data)) as picture:
    return (
        picture.format == FORMATS.get(image_format)
        and picture.size == (size, size)
        and picture.mode == 'RGB'
    )
