"""Memory of the host, where the CPU is the device that trains.

XLA takes the temporaries of every step anew (549 MiB for SiT-S/2 at batch 4).
The C library asks the kernel for blocks of that size and gives them back, and
the kernel clears each page when it is touched again: a quarter of a step, as
`tools.benchmark --against=torch` measures it.
"""

import ctypes
import importlib.metadata
import importlib.util

import jax

# mallopt(3) of glibc.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed():
  """Has freed memory kept for the next step instead of given back.

  To be called before JAX starts its threads. Elsewhere than on CPUs, and with
  another C library than glibc, it does nothing.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None or not _cpu_only():
    return
  mallopt(ARENA_MAX, 1)  # other threads' blocks would be mapped all the same
  mallopt(MMAP_MAX, 0)
  mallopt(TRIM_THRESHOLD, -1)


def _cpu_only():
  """Says whether JAX will run on the CPU, without starting it."""
  if platforms := jax.config.jax_platforms:
    return platforms == 'cpu'
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return not plugins and importlib.util.find_spec('libtpu') is None
