"""A tiny VAE and a tiny SiT learn together, on digits and a CPU, in minutes.

  python -m irepa_jax.main --config=configs/quickstart_repa_e.py \\
      --workdir=runs/digits_repa_e

First the VAE learns alone, from nothing; then the model joins, and its
alignment shapes the latents as well: `latents/lds` in metrics.jsonl before and
after. With --config.vae_align_coefficient=0 alignment does not reach the VAE:
what to compare with. Nothing is downloaded; without VGG there is
no LPIPS, and 16 pixels are too few for the discriminator.
"""

from configs import quickstart


def get_config(preset='irepa'):
  """Returns the experiment with preset none, repa, irepa, irepa_released."""
  config = quickstart.get_config(preset)
  config.end_to_end = True
  config.autoencoder = 'vae-digits'
  config.perceptual_weight = 0.0
  config.adversarial_weight = 0.0
  config.kl_weight = 1e-4
  config.vae_lr = 1e-3
  config.diffusion_start = 300
  config.steps = 1_000
  config.checkpoint_every = 300
  config.sample_every = 300  # as well as the figures of the latents
  config.eval_every = 350
  return config
