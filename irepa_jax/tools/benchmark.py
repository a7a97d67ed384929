"""Times a training step: img/s, MFU, memory, compilation, and where time goes.

  python -m irepa_jax.tools.benchmark --config=configs/sit_xl.py
  python -m irepa_jax.tools.benchmark --config=configs/sit_s.py --against=torch \\
      --config.batch_size=4 --config.features=cached --config.dtype=float32
  python -m irepa_jax.tools.benchmark --config=configs/sit_xl.py --input

The arrays are random, so neither data nor weights are needed; where
config.data is a prepared data set, its records/s are measured as well. MFU is
given against the fastest large matrix product measured in the same run. With
--against=torch our step alternates with the same step of PyTorch under
torch.compile (benchmarks/pytorch.py), and the ratio of the medians is what counts:
machines are noisy, ratios within one run are not. --input times reading alone,
from random data sets: records/s of a core, and the cores that a chip needs.
"""

import json

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import host_memory
from irepa_jax.distributed import start
from irepa_jax.tools.benchmarks import input as reading
from irepa_jax.tools.benchmarks import step


def define_flags():
  """Defines the flags of the command line."""
  cli.define_config()
  flags.DEFINE_integer('steps', 20, 'Timed steps.', lower_bound=2)
  flags.DEFINE_enum(
      'against', '', ['', 'torch'], 'A yardstick to alternate with.'
  )
  flags.DEFINE_bool('input', False, 'Time the input pipeline, no step.')


def main(args):
  """Prints one JSON object, or a table; returns the exit status."""
  v = flags.FLAGS
  if args[1:] or v.config is None:
    raise errors.UsageError('--config=FILE is required; see --help')
  if v.input:
    found = reading.benchmark(v.config, threads=v.config.data_threads)
    print('\n'.join(reading.table(found)))
    return 0
  host_memory.keep_freed()
  start.join()
  figures = step.benchmark(v.config, steps=v.steps, against=v.against)
  print(json.dumps(figures, indent=2))
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
