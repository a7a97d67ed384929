"""Estimates a scan of four blocks of SiT-XL/2 on one TPU that is not there.

  python -m irepa_jax.tools.benchmarks.block --forms=tpu

Forward and backward of 32 images in bfloat16 with remat `names`, the weights
stacked beforehand: seconds to compile, so that forms of models.forms can be
compared before the whole step is. Prints milliseconds for a block, of what
stands in the loops and of all, and the largest items.
"""

from absl import flags
import jax
import jax.numpy as jnp

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.jobs import plan
from irepa_jax.jobs import plan_table
from irepa_jax.jobs import stopwatch
from irepa_jax.models import forms
from irepa_jax.models import sit
from irepa_jax.runs import chips

IMAGES, TOKENS, BLOCKS = 32, 256, 4


def define_flags():
  """Defines the flags of the command line."""
  flags.DEFINE_string('topology', 'v5e:1x1', 'One chip to compile for.')
  flags.DEFINE_enum('forms', 'tpu', list(forms.FORMS), 'Of models.forms.')


def program(device, platform):
  """Returns the compiled gradient of the blocks."""
  sizes = models.sizes('SiT-XL/2')
  block = sit.Block(
      sizes['heads'], platform=platform, dtype=jnp.bfloat16, parent=None
  )
  place = jax.sharding.SingleDeviceSharding(device)
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=place)
  x = shape(IMAGES, TOKENS, sizes['width'])
  c = shape(IMAGES, sizes['width'])
  weights = jax.eval_shape(block.init, jax.random.key(0), x, c)['params']
  stacked = jax.tree.map(lambda w: shape(BLOCKS, *w.shape), weights)
  names = forms.of(platform).saved
  policy = jax.checkpoint_policies.save_only_these_names(*names)

  def loss(stacked, x, c):
    body = lambda x, one: (block.apply({'params': one}, x, c), None)
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jnp.sum(jax.lax.scan(body, x, stacked)[0].astype(jnp.float32) ** 2)

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  return gradient.lower(stacked, x, c).compile()


def estimate(device, platform):
  """Returns the figures of the blocks, in the forms of a platform."""
  compiled = program(device, platform)
  clock, found = chips.find(device).clock, stopwatch.items(compiled.as_text())
  ms = lambda kept: 1e3 * sum(i.cycles for i in kept) / clock / BLOCKS
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  return {
      'forms': platform,
      'in_loops_ms': round(ms(i for i in found if i.trips > 1), 2),
      'all_ms': round(ms(found), 2),
      'temporaries_gib': round(temporaries / plan.GIB, 2),
      'estimate': {'largest': stopwatch.largest(found, 20)},
  }


def main(args):
  """Prints the estimate; returns the exit status."""
  v = flags.FLAGS
  if args[1:]:
    raise errors.UsageError(f'unexpected {args[1]!r}; see --help')
  jax.config.update('jax_enable_compilation_cache', False)
  (device,) = plan.topology(v.topology)
  print(plan_table.table(estimate(device, v.forms)))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
