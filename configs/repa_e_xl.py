"""SiT-XL and its VAE learn together on ImageNet at 256 pixels (REPA-E).

  python -m irepa_jax.main --config=configs/repa_e_xl.py:irepa \
      --workdir=runs/repa_e_xl

A preset of alignment and, behind an underscore, the VAE that it starts from:
repa_f8d4 (SD-VAE, the default), repa_f16d32_in (IN-VAE), repa_f16d32_va
(VA-VAE), irepa_f8d4 and so on. repa_released is what the released command
computes on 8 GPUs: the position table learns, and the discriminator's batch
statistics are those of 32 images. irepa_half weighs alignment 0.5.

Published rows this file aims at (FID, 50k samples, ADM suite, 400k steps,
without guidance; with guidance on an interval of t):
  repa_f8d4: 4.07; 1.67 (2.2 on [0, 0.65])
  repa_f16d32_in: 4.09; 1.61 (1.8 on [0, 0.825])
  repa_f16d32_va: 4.05; 1.73 (1.9 on [0, 0.825])
and at 100k steps, repa -> irepa by encoder (of which VAE is not stated):
  dinov2-vit-b 12.9 -> 12.1; dinov3-vit-b16 14.4 -> 11.7;
  webssl-vit-1b 26.5 -> 13.2; pe-vit-g 25.9 -> 16.4
Sources: arXiv 2504.10483; arXiv 2512.10794, table 3a.
"""

from configs import base

# name: (autoencoder, SiT's patch, hub id and first part of its three files)
VAES = {
    'f8d4': ('sd-vae-f8d4', 2, 'REPA-E/sdvae:sdvae-f8d4'),
    'f16d32_in': ('vae-f16d32', 1, 'REPA-E/invae:invae-f16d32'),
    'f16d32_va': ('vae-f16d32', 1, 'REPA-E/vavae:vavae-f16d32'),
}
# What presets of this file change beside those of base.
VARIANTS = {
    'repa_released': dict(train_positions=True, discriminator_groups=8),
    'irepa_half': dict(align_coefficient='0.5'),
}


def get_config(preset='irepa'):
  """Returns the experiment with PRESET or PRESET_VAE, see above."""
  vae = next((name for name in VAES if preset.endswith('_' + name)), '')
  kind = preset.removesuffix('_' + vae) if vae else preset
  alignment = kind.split('_')[0] if kind in VARIANTS else kind
  config = base.get_config(alignment)
  config.update(VARIANTS.get(kind, {}))
  autoencoder, patch, files = VAES[vae or 'f8d4']
  config.end_to_end = True
  config.autoencoder = autoencoder
  config.autoencoder_weights = f'{files}.pt'
  config.vae_statistics = f'{files}-latents-stats.pt'
  config.discriminator_weights = f'{files}-discriminator-ckpt.pt'
  config.model = f'SiT-XL/{patch}'
  config.align_depth = 8
  return config
