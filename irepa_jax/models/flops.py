"""Floating-point operations of the networks, 2 per multiply-add.

Matrix products only, of one image forward; a training step is three times
that. They are the numerator of MFU, so recomputation does not count.
"""

import math


def model(module):
  """Returns the FLOPs of a diffusion transformer for one image."""
  return {'SiT': sit, 'JiT': just_image}[type(module).__name__](module)


def sit(module):
  """Returns the FLOPs of SiT for one image."""
  n = (module.size // module.patch) ** 2
  d = module.width
  hidden = int(d * module.mlp_ratio)
  pixels = module.patch**2 * module.channels
  products = n * (4 * d * d + 2 * d * hidden)  # qkv, proj, fc1, fc2
  attention = 2 * n * n * d
  modulation = 6 * d * d
  blocks = module.depth * (products + attention + modulation)
  return 2 * (blocks + 2 * n * d * pixels + 2 * d * d)


def just_image(module):
  """Returns the FLOPs of JiT for one image."""
  n, d = (module.size // module.patch) ** 2, module.width
  hidden = int(int(d * module.mlp_ratio) * 2 / 3)
  late = max(module.depth - module.context_start, 0)

  def block(n):
    products = n * (4 * d * d + 3 * d * hidden)  # qkv, proj, w12, w3
    return products + 2 * n * n * d + 6 * d * d

  blocks = (module.depth - late) * block(n)
  blocks += late * block(n + module.context_length)
  pixels = module.patch**2 * module.channels
  ends = n * (module.bottleneck * (pixels + d) + d * pixels) + 2 * d * d
  return 2 * (blocks + ends)


def projectors(module):
  """Returns the FLOPs of the projectors for one image."""
  n, d, h = math.prod(module.grid), module.in_width, module.hidden
  each = {
      'mlp': lambda width: d * h + h * h + h * width,
      'linear': lambda width: d * width,
      'conv': lambda width: module.kernel**2 * d * width,
  }[module.kind]
  return 2 * n * sum(map(each, module.widths))
