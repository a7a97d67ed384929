"""MeanFlow with SiT-XL/2 on ImageNet at 256 pixels, aligned to DINOv2-B.

  python -m irepa_jax.main --config=configs/meanflow_xl.py:irepa \
      --workdir=runs/meanflow_xl

Published rows this file aims at (FID, 50k samples, ADM suite):
  none: 3.43 in one evaluation of the network at 240 epochs, 2.93 in two
With alignment nothing is published at this size. Guidance is that of two
copies of the paper's table of settings, which agree.
Source: arXiv 2505.13447, tables 2 and 4.
"""

from configs import meanflow_b


def get_config(preset='irepa'):
  """Returns the experiment with a preset of meanflow_b."""
  config = meanflow_b.get_config(preset)
  config.model = 'SiT-XL/2'
  config.align_depth = 8
  if config.kappa:
    config.omega = 0.2
    config.kappa = 0.92
    config.omega_high = 0.75
  return config
