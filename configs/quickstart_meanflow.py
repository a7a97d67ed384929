"""Handwritten digits in one step, after minutes on a CPU: MeanFlow.

  python -m irepa_jax.main --config=configs/quickstart_meanflow.py \
      --workdir=runs/digits1

The digits, codec and encoder of configs/quickstart.py; the network learns mean
velocities, and one evaluation of it makes an image out of noise.
"""

from configs import quickstart


def get_config(preset='irepa'):
  """Returns the experiment with preset none, repa, irepa, irepa_released."""
  config = quickstart.get_config(preset)
  config.objective = 'mean_flow'
  config.kappa = 0.5
  config.time = 'logit_normal'
  config.time_mean = -0.4
  config.clip = 0.0
  config.sampler = 'euler'
  config.sample_steps = 1
  return config
