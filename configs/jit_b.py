"""JiT-B/16 on ImageNet at 256 pixels, aligned to DINOv2-B.

  python -m irepa_jax.main --config=configs/jit_b.py:irepa --workdir=runs/jit_b

Published rows this file aims at (FID of 50k samples):
  none: 4.37 after 200 epochs of batch 1024, 3.66 after 600 (steps=750600), Heun
    with 50 steps, guidance 2.9 to 3.0
  irepa: no number is published, a figure alone
Sources: arXiv 2511.13720.
"""

from configs import base


def get_config(preset='irepa'):
  """Returns the experiment with preset none, none_short, repa, irepa."""
  config = base.get_jit(preset, guidance=2.9)
  config.model = 'JiT-B/16'
  config.align_depth = 4
  return config
