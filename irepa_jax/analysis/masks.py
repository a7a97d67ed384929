"""Foreground masks for SRSS: from a folder, or guessed from the pixels.

A folder holds one mask per image under the image's name (`cat.png` for
`cat.jpg`), nonzero where the object is. As in the released code a token is
foreground when any of its pixels is, and an image counts only if at least a
quarter of its tokens are foreground and a quarter background (64 of 256 there).

Without masks `guess` takes the frame of an image as background: a pixel is as
salient as its colour is unlikely (Mahalanobis distance) under that one of the
four borders which explains it best, and Otsu's threshold splits the image. It
looks at pixels only, so it favours no encoder. It fails where the object
touches several borders or shares their colours; use it to rank encoders, not to
compare with published SRSS.
"""

import pathlib

import numpy as np

from irepa_jax import errors
from irepa_jax.data import images
from irepa_jax.data import tree

LEAST_SHARE = 0.25  # spatial_metrics_comparison.py: 64 of 256 tokens
BORDER = 16  # a border is this fraction of the side
NOISE = 8.0  # grey levels of 0..255 below which colours count as equal
BLUR = 64  # the saliency is averaged over this fraction of the side
BINS = 256


class Folder:
  """Masks by the name of their image."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    if not self.folder.is_dir():
      raise errors.DataError(f'mask folder {folder} not found')
    names, left_out = tree.images_below(self.folder)
    self._files = {
        str(pathlib.PurePosixPath(name).with_suffix('')): self.folder / name
        for name in names
    }
    if not self._files:
      held = f'holds no images but {tree.told(left_out)}'
      raise errors.DataError(
          f'mask folder {folder} {held if left_out else "is empty"}'
      )

  def __call__(self, name, pixels, size):
    """Returns the mask bool [size size] of an image.

    name: of the image below its own folder, with or without an extension.
    pixels: (height, width) of the image file; a mask has the same, or is
      already cut to size x size.
    """
    path = self._files.get(str(pathlib.PurePosixPath(name).with_suffix('')))
    if path is None:
      raise errors.DataError(
          f'no mask for image {name} in {self.folder} ({len(self._files)} masks,'
          f' such as {next(iter(self._files))})'
      )
    picture = _open(path)
    seen = picture.size[::-1]
    if seen not in (tuple(pixels), (size, size)):
      raise errors.DataError(
          f'mask {path} is {seen[0]}x{seen[1]} pixels, its image'
          f' {pixels[0]}x{pixels[1]}: they must be of one size'
      )
    return threshold(centre_square(picture), size)


def threshold(picture, size):
  """Resizes a mask with PIL's default filter: bool [size size].

  Bicubic for grey and RGB, nearest for palette and 1-bit images, which spreads
  a grey mask by a pixel or two.  Parity: load_and_filter_masks.
  """
  values = np.asarray(picture.resize((size, size))) > 0
  return values.any(axis=-1) if values.ndim == 3 else values


def centre_square(picture):
  """Cuts the largest centred square, as the crop of the image does."""
  side = min(picture.size)
  left, top = ((length - side) // 2 for length in picture.size)
  return picture.crop((left, top, left + side, top + side))


def patches(masks, h, w):
  """Pools masks bool [b s s] to tokens bool [b h w]: any pixel counts."""
  for axis, cells in ((1, h), (2, w)):
    length = masks.shape[axis]
    if cells > length:
      raise errors.UsageError(
          f'masks of {length} pixels are too small for {cells} tokens a side'
      )
    starts = np.arange(cells) * length // cells
    masks = np.maximum.reduceat(masks, starts, axis=axis)
  return masks.reshape(len(masks), h * w)


def usable(tokens):
  """Which masks bool [b n] have a quarter of both kinds? bool [b]."""
  least = LEAST_SHARE * tokens.shape[1]
  count = tokens.sum(axis=1)
  return (count >= least) & (tokens.shape[1] - count >= least)


def guess(image):
  """Guesses the foreground of an image uint8 [s s 3] as bool [s s]."""
  saliency = _blur(_saliency(np.float32(image)), max(1, len(image) // BLUR))
  return saliency > otsu(saliency)


def otsu(values):
  """The threshold with the greatest variance between its two sides."""
  count, edges = np.histogram(values, BINS)
  centre = (edges[1:] + edges[:-1]) / 2
  below = np.cumsum(count)
  above = below[-1] - below
  total = np.cumsum(count * centre)
  mean_below = total / np.maximum(below, 1)
  mean_above = (total[-1] - total) / np.maximum(above, 1)
  between = below * above * (mean_below - mean_above) ** 2
  return edges[1 + np.argmax(between)]


def _saliency(image):
  """Log of the squared distance of a pixel to the nearest border colours."""
  side = max(1, len(image) // BORDER)
  borders = (image[:side], image[-side:], image[:, :side], image[:, -side:])
  gaps = [_mahalanobis(image, border) for border in borders]
  return np.log1p(np.min(gaps, axis=0))


def _mahalanobis(image, border):
  """Squared distance in units of the spread of the colours of a border."""
  colours = border.reshape(-1, 3)
  spread = np.cov(colours.T) + NOISE**2 * np.eye(3)
  whiten = np.float32(np.linalg.cholesky(np.linalg.inv(spread)))
  gap = (image.reshape(-1, 3) - colours.mean(axis=0)) @ whiten
  return np.einsum('nc,nc->n', gap, gap).reshape(image.shape[:2])


def _blur(values, radius):
  """Averages over squares of 2 radius + 1 pixels."""
  window = np.ones(2 * radius + 1) / (2 * radius + 1)
  for axis in (0, 1):
    padding = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
    padded = np.pad(values, padding, mode='edge')
    values = np.apply_along_axis(np.convolve, axis, padded, window, 'valid')
  return values


def _open(path):
  try:
    with images.open_(path) as picture:
      picture.load()
      return picture.copy()
  except Exception as error:  # of a damaged file: whatever its decoder raises
    raise errors.DataError(f'mask {path} cannot be read: {error}') from error
