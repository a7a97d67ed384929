"""JiT-L/16 on ImageNet at 256 pixels, aligned to DINOv2-B.

  python -m irepa_jax.main --config=configs/jit_l.py:irepa --workdir=runs/jit_l

Published rows this file aims at (FID of 50k samples):
  irepa, dinov2-vit-b: 29.19 at 200k steps of batch 256 (IS 50.72, sFID 9.42),
    50 Euler steps without guidance; encoder and depth are not stated
  none_short: 49.06 in the same conditions (IS 29.37, sFID 11.21)
  none: 2.79 after 200 epochs of batch 1024, 2.36 after 600 (steps=750600), Heun
    with 50 steps, guidance 2.4
Sources: arXiv 2512.10794, table 10; arXiv 2511.13720.
"""

from configs import base


def get_config(preset='irepa'):
  """Returns the experiment with preset none, none_short, repa, irepa."""
  config = base.get_jit(preset, guidance=2.4)
  config.model = 'JiT-L/16'
  config.align_depth = 8
  return config
