"""SiT-B and its VAE learn together on ImageNet at 256 pixels (REPA-E).

  python -m irepa_jax.main --config=configs/repa_e_b.py:irepa \
      --workdir=runs/repa_e_b

Presets as in repa_e_xl.py. No row is published at this size; of SiT-L at 512
pixels the authors answer 12.8 after 100k steps, REPA 22.2.
"""

from configs import repa_e_xl


def get_config(preset='irepa'):
  """Returns the experiment with PRESET or PRESET_VAE, as repa_e_xl.py."""
  config = repa_e_xl.get_config(preset)
  config.model = config.model.replace('XL', 'B')
  config.align_depth = 4
  return config
