"""JiT-H/16 on ImageNet at 256 pixels, aligned to DINOv2-B.

  python -m irepa_jax.main --config=configs/jit_h.py:irepa --workdir=runs/jit_h

Published rows this file aims at (FID of 50k samples):
  none: 2.29 after 200 epochs of batch 1024, 1.86 after 600 (steps=750600), Heun
    with 50 steps, guidance 2.2
  irepa: none is published
Sources: arXiv 2511.13720.
"""

from configs import base


def get_config(preset='irepa'):
  """Returns the experiment with preset none, none_short, repa, irepa."""
  config = base.get_jit(preset, guidance=2.2)
  config.model = 'JiT-H/16'
  config.align_depth = 8
  config.proj_dropout = 0.2  # without it H is worse than L at 200 epochs
  return config
