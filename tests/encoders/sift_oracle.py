"""Makes golden/sift_512.npz: SIFT tokens of kornia and OpenCV at 512 pixels.

  python tests/encoders/sift_oracle.py    (needs torch, kornia 0.8.1, OpenCV 4.12)

Both libraries are first asked for the stored tokens at 256 pixels, which come
from the released code, so that they are known to be called as it calls them.
"""

import pathlib
import sys

import cv2
import kornia
import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import golden_files  # noqa: E402
import oracles  # noqa: E402

SPACING, EVERY = 16, 8  # pixels between points; tokens kept: 0, 8, 16 ...


def centres(side):
  """Returns points [n 2], x before y, row by row."""
  line = np.arange(side // SPACING) * SPACING + SPACING / 2
  y, x = np.meshgrid(line, line, indexing='ij')
  return np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)


@torch.no_grad()
def of_kornia(image):
  """Returns descriptors [n 128] of an image [h w 3], turned to direction."""
  feature = kornia.feature
  x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
  gray = kornia.color.rgb_to_grayscale(x)
  points = torch.tensor(centres(image.shape[0]))[None]
  scale = torch.full((1, points.shape[1], 1, 1), float(SPACING))
  frames = feature.laf_from_center_scale_ori(points, scale)
  frames = feature.LAFOrienter(20)(frames, gray)
  patches = feature.extract_patches_from_pyramid(gray, frames, 41)[0]
  return feature.SIFTDescriptor(41, rootsift=False)(patches).numpy()


def of_opencv(image):
  """Returns upright descriptors [n 128] of an image [h w 3]."""
  gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  points = [cv2.KeyPoint(*map(float, p), SPACING) for p in centres(len(image))]
  return cv2.SIFT_create().compute(gray, points)[1]


def main():
  photo = golden_files.load('photos_uint8')['photos'][0].transpose(1, 2, 0)
  photo = np.ascontiguousarray(photo)
  stored = golden_files.load('sift_kornia')['tokens_every2'][0]
  found = of_kornia(photo)[::2]
  print('kornia at 256: off by', np.abs(found - stored).max())
  np.testing.assert_allclose(found, stored, atol=1e-4)
  np.testing.assert_array_equal(
      of_opencv(photo), golden_files.load('sift_opencv')['tokens'][0]
  )
  image = oracles.large_images()[0]
  np.savez_compressed(
      golden_files.FOLDER / 'sift_512.npz',
      kornia=of_kornia(image)[::EVERY],
      opencv=of_opencv(image)[::EVERY].astype(np.uint8),
  )


if __name__ == '__main__':
  main()
