"""Handwritten digits as pixels: a tiny JiT on a CPU in minutes.

  python -m irepa_jax.main --config=configs/quickstart_jit.py --workdir=runs/pixels

The digits of quickstart.py without any autoencoder: the model sees 16x16 pixels
in patches of 4x4 and estimates the clean image; the loss compares velocities.
"""

from configs import base


def get_config(preset='irepa'):
  """Returns the experiment with preset none, repa, irepa, irepa_released."""
  config = base.get_config(preset)
  config.data = 'digits'  # prepared inside the run directory
  config.image_size = 16
  config.num_classes = 10
  config.autoencoder = 'pixels'
  config.batch_size = 64
  config.data_threads = 2

  config.model = 'JiT-T/4'
  config.align_depth = 2
  config.dtype = 'float32'
  config.scan_layers = False
  config.remat = 'none'
  if config.encoder:
    config.encoder = 'hog-vit-g4_d128'
    # Coarse HOG tokens pull less than an encoder's: weighted 4, not 0.5 or 1.
    config.align_coefficient = '4.0'
  config.encoder_dtype = 'float32'
  config.projector_hidden = 256

  config.prediction = 'x'
  config.loss_space = 'v'
  config.time = 'logit_normal'
  config.time_mean = 0.8
  config.time_std = 0.8

  config.steps = 1_200
  config.lr = 1.7e-3
  config.betas = (0.9, 0.95)
  config.clip = 0.0
  config.ema = (0.99,)
  config.fsdp = False
  config.log_every = 50
  config.checkpoint_every = 400
  config.keep_every = 0

  config.sample_every = 600
  config.sample_count = 100
  config.sampler = 'heun'
  config.sample_steps = 16
  config.labels = 'balanced'
  config.quantise = 'round'
  config.eval_every = 100
  config.evaluator = 'digits'
  return config
