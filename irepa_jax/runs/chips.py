"""Accelerators: clock, peak and memory, as their makers publish them.

The peak is that of dense bfloat16 matrix products, without sparsity. The clock
of a TPU is what its peak implies, 2 FLOPs in each cell of its matrix units in
each cycle; it turns the compiler's cycles into seconds.
"""

from typing import NamedTuple


class Chip(NamedTuple):
  """One device of JAX.

  kind: beginning of jax.Device.device_kind.
  peak: FLOP/s.
  memory: that a program can use, GiB; 0 where it is not known here.
  clock: Hz; 0 where the compiler counts no cycles.
  """

  kind: str
  peak: float
  memory: float
  clock: float = 0.0


# The first that fits. TPU: cloud.google.com/tpu/docs, per chip, the memory as
# their compilers say; of TPU7x JAX sees the two chiplets of a chip as a device
# each. Matrix units are 128 x 128 up to v5p, then 256 x 256. NVIDIA: data sheets,
# without sparsity; B200 of HGX, GB200 and GB300 of NVL72.
CHIPS = (
    Chip('TPU v4', 275e12, 31.25, 1.05e9),  # 8 units
    Chip('TPU v5 lite', 197e12, 15.75, 1.5e9),  # v5e, 4
    Chip('TPU v5e', 197e12, 15.75, 1.5e9),
    Chip('TPU v5', 459e12, 95, 1.75e9),  # v5p, 8
    Chip('TPU v6 lite', 918e12, 31.25, 1.75e9),  # v6e, Trillium, 4
    Chip('TPU v6e', 918e12, 31.25, 1.75e9),
    Chip('TPU7x', 2307e12 / 2, 96, 2.2e9),  # Ironwood, 4 of each chiplet
    Chip('NVIDIA A100', 312e12, 80),
    Chip('NVIDIA H100 PCIe', 756e12, 80),
    Chip('NVIDIA H100', 989.4e12, 80),
    Chip('NVIDIA H200', 989.4e12, 131.3),
    Chip('NVIDIA B200', 2250e12, 167.6),
    Chip('NVIDIA GB200', 2500e12, 173.2),
    Chip('NVIDIA B300', 2250e12, 0),
    Chip('NVIDIA GB300', 2500e12, 0),
)


def find(device):
  """Returns the Chip of a jax device, or None where it is not in the table."""
  kind = device.device_kind
  return next((chip for chip in CHIPS if kind.startswith(chip.kind)), None)
