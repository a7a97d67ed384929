"""Which form of an operation runs where, and why.

The forms of one operation are the same mathematics and agree to the rounding of
tests/models/test_forms.py; they differ in what is stored for the gradient and
in the order of the work, because what wins on one processor loses on another.

Per block of SiT-XL/2, forward and backward, 32 images (docs/performance.md):
  tpu   estimates of the compiler for v5e. attention and linear of fused_tpu
        against those of fused; queries, keys and values from a product each,
        computed again in the gradient, where a stored one would have to be
        moved into another layout; the output of the MLP stored instead.
  cpu   measured: fused, which stores inputs alone, and one product for all.
  gpu   as on a CPU, but attention by cuDNN, in bfloat16 and where the width of
        a head allows: it never writes the probabilities. By its published
        properties: not measured here yet.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from irepa_jax.models import fused
from irepa_jax.models import fused_tpu

CUDNN_WIDTH = 8, 128  # of a head: multiples of the first up to the second


class Forms(NamedTuple):
  """The operations of a block that differ between platforms.

  linear(x [... i], kernel [i o], bias [o]) -> [... o].
  split(x, kernel, bias, parts) -> as many equal parts of that [... o / parts].
  attention(q, k, v), heads [b n k h] -> [b n k h].
  modulated_norm(x [b n d], shift [b d], scale [b d]) -> [b n d].
  saved: what remat 'names' stores of a block (models.stack).
  """

  linear: Callable
  split: Callable
  attention: Callable
  modulated_norm: Callable
  saved: tuple[str, ...]


def split_output(x, kernel, bias, parts):
  """Splits one product."""
  product = fused.linear(x, kernel, bias)
  return jnp.split(checkpoint_name(product, 'qkv'), parts, axis=-1)


def split_weights(x, kernel, bias, parts):
  """Makes a product of each part of the weights."""
  kernels = jnp.split(kernel, parts, axis=-1)
  pairs = zip(kernels, jnp.split(bias, parts), strict=True)
  return [fused_tpu.linear(x, *pair) for pair in pairs]


def cudnn(q, k, v):
  """Flash attention of NVIDIA GPUs, in bfloat16."""
  return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')


def attention_of_gpus(q, k, v):
  """cuDNN where it can; it takes neither float32 nor heads of any width."""
  unit, most = CUDNN_WIDTH
  fits = q.shape[-1] % unit == 0 and q.shape[-1] <= most
  return (cudnn if fits and q.dtype == jnp.bfloat16 else fused.attention)(
      q, k, v
  )


CPU = Forms(
    linear=fused.linear,
    split=split_output,
    attention=fused.attention,
    modulated_norm=fused.modulated_norm,
    saved=('qkv', 'attention', 'sums', 'hidden'),
)
FORMS = {
    'cpu': CPU,
    'gpu': CPU._replace(attention=attention_of_gpus),
    'tpu': Forms(
        linear=fused_tpu.linear,
        split=split_weights,
        attention=fused_tpu.attention,
        modulated_norm=fused_tpu.modulated_norm,
        saved=('average', 'sums', 'hidden', 'branch'),
    ),
}
FORMS['cuda'] = FORMS['gpu']  # the name of a GPU that is not there
# Attention by the name of a configuration; auto is the one of FORMS.
ATTENTION = {'xla': fused.attention, 'cudnn': cudnn}


def of(platform) -> Forms:
  """Returns the forms for a platform of JAX; for an unknown one the CPU's."""
  return FORMS.get(platform, CPU)


def attention(name, platform) -> Callable:
  """Returns the attention of that name: auto, xla or cudnn."""
  return of(platform).attention if name == 'auto' else ATTENTION[name]
