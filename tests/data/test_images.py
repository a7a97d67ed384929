"""The ADM crop against an independent computation, and odd image files."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from irepa_jax import errors
from irepa_jax.data import images


def box(x):
  return (np.abs(x) <= 0.5).astype(float)


def cubic(x, a=-0.5):
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(size_in, size_out, kernel, support):
  """Rows of antialiased resampling, centres at half pixels."""
  scale = size_in / size_out
  stretch = max(scale, 1.0)
  matrix = np.zeros((size_out, size_in))
  for i in range(size_out):
    centre = (i + 0.5) * scale
    low = max(int(centre - support * stretch + 0.5), 0)
    high = min(int(centre + support * stretch + 0.5), size_in)
    matrix[i, low:high] = kernel((np.arange(low, high) + 0.5 - centre) / stretch)
  return matrix / matrix.sum(1, keepdims=True)


def resize(x, h, w, kernel, support):
  """Columns first, rounded to 8 bits, then rows, rounded again."""
  to_byte = lambda y: np.clip(np.floor(y + 0.5), 0, 255)
  x = to_byte(np.einsum('vw,hwc->hvc', weights(x.shape[1], w, kernel, support), x))
  return to_byte(np.einsum('vh,hwc->vwc', weights(x.shape[0], h, kernel, support), x))


def reference(x, size):
  """The crop of guided-diffusion, computed without PIL."""
  x = x.astype(float)
  while min(x.shape[:2]) >= 2 * size:
    x = resize(x, x.shape[0] // 2, x.shape[1] // 2, box, 0.5)
  scale = size / min(x.shape[:2])
  x = resize(x, round(x.shape[0] * scale), round(x.shape[1] * scale), cubic, 2)
  top, left = (x.shape[0] - size) // 2, (x.shape[1] - size) // 2
  return x[top : top + size, left : left + size]


def picture(h, w, seed=0):
  """A smooth image with an edge and some noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:h, :w]
  waves = np.sin(x[..., None] / [7, 11, 5]) * np.cos(y[..., None] / [9, 4, 13])
  noise = rng.normal(size=(h, w, 3)) * 10
  return np.clip(waves * 90 + 128 + noise + 40 * (x > y)[..., None], 0, 255).astype(np.uint8)


def save(pixels, kind, **settings):
  file = io.BytesIO()
  image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
  image.save(file, kind, **settings)
  return file.getvalue()


@pytest.mark.parametrize(
    'shape', [(97, 150), (150, 97), (64, 64), (63, 131), (33, 40), (21, 25), (257, 130)]
)
def test_crop_is_the_adm_crop(shape):
  pixels = picture(*shape)
  seen = images.crop(pixels, 32, 'none').pixels.astype(float)
  difference = np.abs(seen - reference(pixels, 32))
  # PIL works in fixed point: now and then another rounding of one level.
  assert seen.shape == (32, 32, 3)
  assert difference.max() <= 1
  assert difference.mean() < 0.02


def test_crop_of_its_own_size_is_untouched():
  pixels = picture(32, 32)
  np.testing.assert_array_equal(images.crop(pixels, 32, 'none').pixels, pixels)


def test_files_are_decoded_before_the_crop():
  pixels = picture(80, 100)
  from_file = images.crop(save(pixels, 'PNG'), 32, 'png')
  from_array = images.crop(pixels, 32, 'png')
  np.testing.assert_array_equal(from_file.pixels, from_array.pixels)
  np.testing.assert_array_equal(images.decode(from_file.encoded), from_file.pixels)


def test_small_images_are_marked():
  assert images.crop(picture(31, 90), 32, 'none').enlarged
  assert not images.crop(picture(32, 90), 32, 'none').enlarged


@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_a_ready_crop_keeps_its_bytes(kind):
  data = save(picture(32, 32), kind)
  assert images.crop(data, 32, kind).encoded == data
  other = {'jpeg': 'png', 'png': 'jpeg'}[kind]
  assert images.crop(data, 32, other).encoded != data
  assert images.crop(data, 16, kind).encoded != data


def test_jpeg_stays_close_and_none_keeps_nothing():
  x, y = np.meshgrid(np.arange(64), np.arange(64))
  pixels = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
  seen = images.decode(images.encode(pixels, 'jpeg')).astype(int)
  assert np.abs(seen - pixels).mean() < 2
  assert images.encode(pixels, 'none') == b''


def test_grey_palette_and_alpha_images_become_rgb():
  grey = picture(40, 40)[..., 0]
  expected = np.repeat(grey[..., None], 3, -1)
  image = PIL.Image.fromarray(grey)
  for kind, mode in (('PNG', 'L'), ('PNG', 'P'), ('PNG', 'RGBA'), ('PNG', 'LA')):
    seen = images.decode(save(image.convert(mode), kind))
    np.testing.assert_array_equal(seen, expected)


def test_cmyk_jpeg_becomes_rgb():
  pixels = np.zeros((48, 48, 3), np.uint8)
  pixels[:] = (200, 120, 40)
  data = save(PIL.Image.fromarray(pixels).convert('CMYK'), 'JPEG', quality=95)
  assert np.abs(images.decode(data).astype(int) - pixels).max() < 6


def test_exif_orientation_is_ignored():
  pixels = picture(40, 60)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  assert images.decode(save(pixels, 'JPEG', exif=exif)).shape == (40, 60, 3)


@pytest.mark.parametrize(
    'data, hint',
    [
        (b'', 'empty'),
        (b'version https://git-lfs.github.com/spec/v1\noid', 'git-lfs pointer'),
        (b'<!DOCTYPE html><html>404', 'web page'),
        (b'\x00' * 64, 'begins with'),
        (save(picture(64, 64), 'JPEG')[:900], 'truncated'),
        (save(picture(64, 64), 'PNG')[:900], 'unreadable image of 900 bytes'),
    ],
)
def test_unreadable_images_say_what_they_look_like(data, hint):
  with pytest.raises(errors.DataError, match=hint):
    images.crop(data, 32, 'jpeg')


# Modes and depths -------------------------------------------------------------


def ramp(h=24, w=20):
  """Greys uint16 [h w] from black to white."""
  y, x = np.mgrid[:h, :w]
  return ((x + y) * 65535 / (w + h - 2)).astype(np.uint16)


def assert_grey(seen, expected):
  np.testing.assert_array_equal(seen, np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM', 'JPEG2000'])
def test_deep_greys_keep_their_upper_bits(kind):
  settings = {'irreversible': False} if kind == 'JPEG2000' else {}
  assert_grey(images.decode(save(ramp(), kind, **settings)), ramp() >> 8)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('white_is_zero', [False, True])
def test_deep_tiff_of_either_order_and_polarity(order, white_is_zero):
  if order == '>' and white_is_zero:
    with pytest.raises(errors.DataError, match='unreadable'):
      images.decode(tiff(ramp(), order, white_is_zero))
    return
  expected = (ramp() >> 8).astype(np.uint8)
  seen = images.decode(tiff(ramp(), order, white_is_zero))
  assert_grey(seen, 255 - expected if white_is_zero else expected)


def tiff(grey, order, white_is_zero, bits=16):
  """Writes a plain TIFF of unsigned greys by hand."""
  h, w = grey.shape
  tags = [(256, w), (257, h), (258, bits), (259, 1), (262, int(not white_is_zero)),
          (273, 8), (277, 1), (278, h), (279, grey.size * bits // 8)]  # fmt: skip
  data = packed(grey, bits) if bits == 12 else grey.astype(f'{order}u2').tobytes()
  head = (b'II*\0' if order == '<' else b'MM\0*')
  entries = b''.join(
      struct.pack(f'{order}HHII', tag, 4, 1, value) for tag, value in tags
  )
  offset = struct.pack(f'{order}I', 8 + len(data))
  return head + offset + data + struct.pack(f'{order}H', len(tags)) + entries + bytes(4)


def packed(grey, bits):
  """Packs values into bits, the upper ones first; the width is even."""
  table = (grey[..., None] >> np.arange(bits)[::-1]) & 1
  return np.packbits(table.astype(np.uint8)).tobytes()


def test_twelve_bits_of_tiff():
  grey = ramp() >> 4
  assert_grey(images.decode(tiff(grey, '<', False, bits=12)), grey >> 4)


@pytest.mark.parametrize('white', [255, 511, 1023, 4095, 65535])
def test_greys_of_pgm_end_in_white(white):
  grey = (ramp().astype(float) * white / 65535).round().astype('>u2')
  data = grey.tobytes() if white > 255 else grey.astype(np.uint8).tobytes()
  seen = images.decode(b'P5\n20 24\n%d\n' % white + data)
  assert seen.min() == 0 and seen.max() == 255
  assert abs(seen.mean() - 127) < 1


@pytest.mark.parametrize(
    'array, kind, name',
    [
        ((ramp() / 65535).astype(np.float32), 'TIFF', 'mode F'),
        (ramp().astype(np.int32), 'TIFF', 'mode I'),
        (np.full((8, 8), -3, np.int32), 'TIFF', 'mode I'),
    ],
)
def test_greys_without_a_white_are_refused(array, kind, name):
  with pytest.raises(errors.DataError, match=f'{name}.*save as 8 or 16 bits'):
    images.decode(save(array, kind))


def test_portable_floats_and_lab_are_refused():
  pfm = b'Pf\n2 2\n-1.0\n' + np.float32([0, 0.5, 1, 0.2]).tobytes()
  with pytest.raises(errors.DataError, match='mode F'):
    images.decode(pfm)
  lab = save(PIL.Image.new('LAB', (4, 4), (128, 0, 0)), 'TIFF')
  with pytest.raises(errors.DataError, match='mode LAB'):
    images.decode(lab)


@pytest.mark.parametrize('mode', sorted(PIL.Image.MODES))
def test_every_mode_of_pil_is_shown_right_or_refused_by_name(mode):
  colour = {'F': 0.5, 'I': 9}.get(mode, 0)
  picture_ = PIL.Image.new(mode, (6, 4), colour if mode in 'FI' else None)
  try:
    seen = images.to_rgb(picture_)
  except errors.DataError as error:
    assert f'mode {mode}' in str(error) and mode in images.REFUSED
    return
  assert seen.mode == 'RGB' and seen.size == (6, 4)


@pytest.mark.parametrize(
    'mode', ['1', 'L', 'LA', 'La', 'P', 'PA', 'RGBA', 'RGBa', 'RGBX', 'YCbCr', 'HSV', 'CMYK']
)
def test_white_and_black_stay(mode):
  board = PIL.Image.fromarray(np.uint8([[0, 255] * 4] * 4))
  # PIL knows no direct way to some modes.
  via = {'La': 'LA', 'RGBa': 'RGBA', 'PA': 'LA', 'HSV': 'RGB', 'CMYK': 'RGB'}
  if mode in via:
    board = board.convert(via[mode])
  seen = np.asarray(images.to_rgb(board.convert(mode)))
  np.testing.assert_array_equal(seen[0, :, 1], [0, 255] * 4)


def test_opacity_is_dropped_and_colours_below_it_stay():
  pixels = np.zeros((4, 4, 4), np.uint8)
  pixels[:] = (200, 100, 50, 0)
  for kind in ('PNG', 'TIFF', 'WEBP'):
    settings = {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
    seen = images.decode(save(pixels, kind, **settings))
    np.testing.assert_array_equal(seen, pixels[..., :3])
  palette = PIL.Image.fromarray(picture(8, 8)).quantize(16)
  clear = save(palette, 'PNG', transparency=bytes(range(16)))
  np.testing.assert_array_equal(images.decode(clear), np.asarray(palette.convert('RGB')))
  single = save(palette, 'GIF', transparency=3)
  np.testing.assert_array_equal(images.decode(single), np.asarray(palette.convert('RGB')))


def test_colour_of_sixteen_bits_keeps_its_upper_ones():
  rows = np.stack([ramp(), ramp()[::-1], ramp()[:, ::-1]], -1)
  raw = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rows)
  chunk = lambda name, data: (
      struct.pack('>I', len(data)) + name + data
      + struct.pack('>I', zlib.crc32(name + data))
  )
  data = b'\x89PNG\r\n\x1a\n' + chunk(
      b'IHDR', struct.pack('>IIBBBBB', 20, 24, 16, 2, 0, 0, 0)
  ) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')
  np.testing.assert_array_equal(images.decode(data), rows >> 8)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_the_first_of_several_pictures_is_taken(kind):
  first, second = (PIL.Image.new('RGB', (8, 8), c) for c in ('white', 'black'))
  settings = {'lossless': True} if kind == 'WEBP' else {}
  data = save(first, kind, save_all=True, append_images=[second], **settings)
  assert images.decode(data).min() == 255


@pytest.mark.parametrize('kind', ['EPS', 'PCX', 'PDF', 'ICO'])
def test_other_kinds_of_files_are_not_opened(kind):
  data = save(picture(16, 16), kind)
  with pytest.raises(errors.DataError, match='unreadable image'):
    images.decode(data)


# Extremes ---------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(3, 400), (2, 900), (500, 5), (1, 33)])
def test_long_pictures_are_cut_as_if_all_had_been_scaled(shape):
  pixels = picture(*shape)
  seen = images.crop(pixels, 8, 'none').pixels.astype(float)
  # PIL may take rows before columns here: another rounding of one level.
  assert np.abs(seen - reference(pixels, 8)).max() <= 1


@pytest.mark.parametrize('size', [(1, 4000), (100_000, 2), (1, 3_000_000)])
def test_the_work_on_a_long_picture_is_that_of_its_crop(size, monkeypatch):
  asked = []
  resize = PIL.Image.Image.resize

  def watched(self, size, *args, **settings):
    asked.append(size)
    return resize(self, size, *args, **settings)

  monkeypatch.setattr(PIL.Image.Image, 'resize', watched)
  data = save(PIL.Image.new('L', size, 77), 'PNG')
  assert (images.crop(data, 256, 'none').pixels == 77).all()
  assert max(w * h for w, h in asked) <= images.LONG * 256 * 256


@pytest.mark.parametrize(
    'raised', [TypeError('x'), ZeroDivisionError(), MemoryError(), RuntimeError('y')]
)
def test_whatever_a_decoder_raises_is_an_unreadable_image(raised, monkeypatch):
  def load(self):
    raise raised

  data = save(picture(8, 8), 'PNG')
  monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, 'load', load)
  with pytest.raises(errors.DataError, match=type(raised).__name__):
    images.decode(data)


@pytest.mark.parametrize('kind', ['TIFF', 'GIF', 'WEBP', 'BMP', 'JPEG2000', 'TGA'])
@pytest.mark.filterwarnings('ignore')
def test_a_damaged_file_is_decoded_or_named(kind):
  data, rng = save(picture(24, 24), kind), np.random.default_rng(0)
  for _ in range(60):
    damaged = bytearray(data[: rng.integers(len(data)) if rng.integers(2) else None])
    for _ in range(3):
      if damaged:
        damaged[rng.integers(min(len(damaged), 400))] = rng.integers(256)
    try:
      assert images.crop(bytes(damaged), 8, 'none').pixels.shape == (8, 8, 3)
    except errors.DataError as error:
      assert 'unreadable' in str(error) or 'mode' in str(error)


@pytest.mark.parametrize(
    'shift, wanted', [((0, 0, 0), False), ((1, 0, 1), False), ((9, 0, 0), True)]
)
def test_a_tint_is_no_colour(shift, wanted):
  grey = np.random.default_rng(0).integers(0, 240, (8, 8, 1), dtype=np.uint8)
  assert images.coloured(grey + np.uint8(shift)) == wanted
