"""Floating-point operations of the networks, 2 per multiply-add.

Matrix products only, of one image forward; a training step is three times
that. They are the numerator of MFU, so recomputation does not count.
"""

import math

import jax


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


def counted(function, *shapes):
  """Returns the FLOPs of the products and convolutions that a function makes.

  shapes: of its arguments, trees of jax.ShapeDtypeStruct. Loops are not counted.
  """
  return sum(map(_of, jax.make_jaxpr(function)(*shapes).eqns))


def _of(equation):
  """Counts one equation of a trace, or all of the function that it calls."""
  params, shapes = equation.params, [v.aval.shape for v in equation.invars]
  if equation.primitive.name == 'conv_general_dilated':
    outputs = shapes[1][params['dimension_numbers'].rhs_spec[0]]
    each = math.prod(shapes[1]) // outputs
  elif equation.primitive.name == 'dot_general':
    (axes, _), _ = params['dimension_numbers']
    each = math.prod(shapes[0][axis] for axis in axes)
  else:
    called = (getattr(v, 'jaxpr', v) for v in params.values())
    inner = [e for v in called for e in getattr(v, 'eqns', ())]
    return sum(map(_of, inner))
  return 2 * each * equation.outvars[0].aval.size
