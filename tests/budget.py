"""What the compiled step of a small model may take on a TPU slice.

  python tests/budget.py

compiles it for four v5e chips that are not there (pip install libtpu) and
writes tests/golden/budget.json, with which tests/jobs/test_budget.py compares.
`--print` prints instead.
"""

import json
import pathlib
import sys

import jax
import libtpu

from configs import quickstart
from irepa_jax import build
from irepa_jax.distributed import collectives
from irepa_jax.jobs import plan
from irepa_jax.jobs import setup
from irepa_jax.jobs import stopwatch

FILE = pathlib.Path(__file__).parent / 'golden' / 'budget.json'
TOPOLOGY = 'v5e:2x2'


def config():
  """Returns the quickstart as large models run."""
  found = quickstart.get_config('irepa')
  found.update(
      dict(
          batch_size=64,
          dtype='bfloat16',
          fsdp=True,
          scan_layers=True,
          remat='names',
      )
  )
  return found


def measure():
  """Returns the collectives with their MiB, memory and cycles of a step."""
  experiment, devices = config(), plan.topology(TOPOLOGY)
  mesh = setup.make_mesh(experiment, devices)
  built = build.experiment(experiment, mesh)
  shapes = setup.abstract(built, experiment, mesh)
  figures, text = plan.compiled(built, experiment, mesh, shapes)
  return {
      'compiled_with': f'jax {jax.__version__}, libtpu {libtpu.__version__}',
      # Every chip a group of its own: all that leaves a chip.
      'collectives': collectives.crossing(text, range(len(devices))),
      'cycles': sum(item.cycles for item in stopwatch.items(text)),
      'bytes': figures['bytes_per_device'],
  }


def main():
  """Writes or prints the figures."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  text = json.dumps(measure(), indent=2) + '\n'
  if '--print' in sys.argv:
    print(text)
  else:
    FILE.write_text(text)


if __name__ == '__main__':
  main()
