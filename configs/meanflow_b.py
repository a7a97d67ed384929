"""MeanFlow with SiT-B/2 on ImageNet at 256 pixels, aligned to DINOv2-B.

  python -m irepa_jax.main --config=configs/meanflow_b.py:irepa \
      --workdir=runs/meanflow_b

`_noguidance` behind a preset (irepa_noguidance) trains without guidance in the
target. Published rows this file aims at (FID, 50k samples, ADM suite), in one
and in four evaluations of the network, without guidance at sampling:
  irepa at 100k steps: 18.62, 12.59; irepa_noguidance: 53.75, 44.52
  repa at 100k: 22.17, 15.28; repa_noguidance: 56.63, 48.87
  irepa, dinov3-vit-b16 at 100k: 17.32, 11.05; webssl1b: 20.69, 13.89
  none: 6.17 in one at 240 epochs, which are the steps below
The paper gives neither coefficient nor depth of these runs; they are those of
its SiT-B/2. Its rows for DINOv2-B and DINOv3-B without guidance are equal.
Sources: arXiv 2512.10794, table 3b; arXiv 2505.13447 for none.
"""

from configs import base

NO_GUIDANCE = '_noguidance'


def get_config(preset='irepa'):
  """Returns the experiment with preset none, repa, irepa, irepa_released."""
  config = base.get_config(preset.removesuffix(NO_GUIDANCE))
  config.preset = preset
  config.model = 'SiT-B/2'
  config.align_depth = 4
  config.objective = 'mean_flow'
  if not preset.endswith(NO_GUIDANCE):
    config.kappa = 0.5  # a scale of 2, at all times
  config.time = 'logit_normal'
  config.time_mean = -0.4
  config.betas = (0.9, 0.95)
  config.clip = 0.0
  config.steps = 1_200_960
  config.sampler = 'euler'
  config.sample_steps = 1
  return config
