"""The convolutions of VGG-16, as an encoder and as the eyes of LPIPS.

Simonyan and Zisserman 2015, arXiv 1409.1556; layers named as in torchvision.
"""

import flax.linen as nn

# Widths of 3x3 convolutions; 0 is a 2x2 max pool.
LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0)
DEEPEST = (512, 512, 512)


def features(x, widths, dtype):
  """Runs layers on normalised pixels [b h w 3], inside a compact module.

  Returns what goes into every max pool, and last what comes out of the end.
  """
  outputs = []
  index = 0  # torchvision counts convolutions, ReLUs and pools
  for width in widths:
    if not width:
      outputs.append(x)
      x, index = nn.max_pool(x, (2, 2), (2, 2)), index + 1
      continue
    name = f'features_{index}'
    x = nn.relu(nn.Conv(width, (3, 3), dtype=dtype, name=name)(x))
    index += 2
  return [*outputs, x]
