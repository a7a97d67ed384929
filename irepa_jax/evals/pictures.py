"""Images as PNG files: one grid, or a folder with one file per image."""

from concurrent import futures
import io

from etils import epath
import numpy as np
import PIL.Image

WHITE = 255
THREADS = 8  # zlib releases the interpreter lock


def grid(images, *, columns=None, gap=2):
  """Lays images uint8 [n h w 3] out in rows, uint8 [H W 3], on white.

  Args:
    images: from left to right, then down.
    columns: in a row; by default as square as it gets.
    gap: pixels between cells and around them.
  """
  n, h, w, c = images.shape
  columns = columns or int(np.ceil(np.sqrt(n)))
  rows = -(-n // columns)
  cell = (h + gap, w + gap)
  sheet = np.full(
      (rows * cell[0] + gap, columns * cell[1] + gap, c), WHITE, np.uint8
  )
  for i, image in enumerate(images):
    row, column = divmod(i, columns)
    top, left = gap + row * cell[0], gap + column * cell[1]
    sheet[top : top + h, left : left + w] = image
  return sheet


def pairs(images, height, *, gap=2):
  """Lays pairs [n 2 h w 3] out one above the other, down and then right.

  height: pixels that the sheet may be high; at least one pair is shown.
  """
  high = 2 * images.shape[2] + 2 * gap
  rows = min(max((height - gap) // high, 1), len(images))
  columns = len(images) // rows
  shown = images[: rows * columns].reshape(columns, rows, *images.shape[1:])
  # [columns rows 2 h w 3] -> row by row
  shown = shown.transpose(1, 2, 0, 3, 4, 5).reshape(-1, *images.shape[2:])
  return grid(shown, columns=columns, gap=gap)


def beside(left, right, *, gap=8):
  """Puts two sheets uint8 [H W 3] beside each other, on white."""
  height = max(len(left), len(right))
  width = left.shape[1] + gap + right.shape[1]
  sheet = np.full((height, width, left.shape[2]), WHITE, np.uint8)
  sheet[: len(left), : left.shape[1]] = left
  sheet[: len(right), left.shape[1] + gap :] = right
  return sheet


def write(path, image):
  """Writes one image uint8 [h w 3] as PNG."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(image).save(buffer, 'png')
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(buffer.getvalue())


def write_folder(folder, parts):
  """Writes 000000.png, 000001.png, ... for the images of these parts."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with futures.ThreadPoolExecutor(THREADS) as pool:
    for part in parts:
      names = [folder / f'{number:06d}.png' for number in part.numbers]
      list(pool.map(write, names, part.images))
