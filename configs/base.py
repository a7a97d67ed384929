"""Every field of an experiment, once, with its meaning.

An experiment file is the difference to this one. The part behind the colon of
`--config=configs/sit_xl.py:irepa` names an alignment preset (ALIGNMENT below);
`--config.field=value` overrides any field and always wins.
"""

from typing import Any
from typing import NamedTuple

import ml_collections


class Field(NamedTuple):
  """A field of an experiment: its default, meaning, and whether it may change.

  free: a run that has a checkpoint may go on with another value, as it chooses
  where and how the same numbers are computed, or what is told about them.
  """

  default: Any
  meaning: str
  free: bool


def fixed(default, meaning):
  """A field that decides the numbers of a run."""
  return Field(default, meaning, free=False)


def free(default, meaning):
  """A field that may change when a run is continued."""
  return Field(default, meaning, free=True)


# fmt: off
FIELDS = {
    'preset': fixed('irepa', 'of alignment, below'),
    'seed': fixed(0, 'of weights, noise and data order'),

    # Data: a folder written by irepa_jax.tools.prepare.
    'data': free('data/imagenet256', 'folder'),
    'image_size': fixed(256, 'pixels'),
    'num_classes': fixed(1000, 'of the data set'),
    'autoencoder': fixed('sd-vae-ft-mse', 'of the latents, by name; or pixels'),
    'autoencoder_weights': free(
        '', "path or hub id; '' is its published source"
    ),
    'flips': fixed(False, 'mirrored: images, or records that are stored so'),
    'drop_colours': free(False, 'train on brightness alone where haar kept that'),
    'batch_size': fixed(256, 'of the whole job, not of one device'),
    'data_threads': free(16, 'that read records'),
    'prefetch': free(2, 'batches on the device ahead of the step'),
    'skip_bad': free(False, 'replace damaged records instead of stopping'),
    'verify_data': free(False, 'checksum every shard before the start'),

    # Model.
    'model': fixed('SiT-XL/2', 'SIZE/PATCH, of SiT or JiT'),
    'qk_norm': fixed(False, 'LayerNorm of queries and keys, of SiT'),
    'attn_dropout': fixed(0.0, 'of JiT, in the middle half of its blocks'),
    'proj_dropout': fixed(0.0, 'of JiT, after attention and in the MLP'),
    'dtype': fixed('bfloat16', 'of matrix products; parameters are float32'),
    'attention': free('auto', 'by the platform; or xla, cudnn (NVIDIA GPUs)'),
    'scan_layers': free(True, 'compiles several times faster than unrolled'),
    'remat': free('names', 'none, names (recompute cheap layers), full'),

    # Alignment. Several encoders: 'dinov2-vit-b,hog-vit-g16_d128'.
    'encoder': fixed('dinov2-vit-b', 'its names, comma separated'),
    'encoder_weights': free('', 'path or hub id each, comma separated'),
    'encoder_dtype': fixed('bfloat16', 'of its matrix products'),
    'encoder_scan': free(False, 'over layers: a large one compiles faster'),
    'features': fixed('online', 'or cached: features written by prepare'),
    'align_depth': fixed(8, 'the block, from 1, whose tokens are aligned'),
    'align_coefficient': fixed(
        '1.0', "one number, or one per encoder: '1,0.5'"
    ),
    'projector': fixed('conv', 'mlp, linear, conv'),
    'projector_kernel': fixed(3, 'of conv: 1, 3, 5, 7'),
    'projector_hidden': fixed(2048, 'of mlp'),
    'spatial_norm': fixed(True, 'of the targets'),
    'gamma': fixed(0.6, 'share of the mean that spatial_norm takes away'),

    # Diffusion. t = 0 is data, t = 1 is noise.
    'path': fixed('linear', 'or cosine'),
    'prediction': fixed('v', 'what the network returns: v, x, eps'),
    'time': fixed('uniform', 'lognormal, logit_normal'),
    'time_mean': fixed(0.0, 'of logit_normal'),
    'time_std': fixed(1.0, 'of logit_normal'),
    'loss_space': fixed(
        '', "what the loss compares: v, x, eps; '' is what the network returns"
    ),
    'divisor_floor': fixed(0.05, 'least divisor from x or eps to v'),
    'noise_scale': fixed(1.0, 'standard deviation of the noise'),
    'label_dropout': fixed(0.1, 'probability of the null label'),
    'objective': fixed('flow_matching', 'mean_flow, improved_mean_flow'),

    # Of mean_flow: rows weigh (squared error + loss_eps) ** -loss_power.
    'data_proportion': fixed(0.75, 'share of the rows with r = t'),
    'omega': fixed(1.0, 'guidance in the target, scale omega / (1 - kappa)'),
    'kappa': fixed(0.0, 'of it, the share of the network with the label'),
    'omega_low': fixed(0.0, 'guided where omega_low <= t <= omega_high'),
    'omega_high': fixed(1.0, 'see omega_low'),
    'omega_largest': fixed(8.0, 'scale that improved_mean_flow is told'),
    'loss_power': fixed(1.0, '0 is the squared error itself'),
    'loss_eps': fixed(0.01, 'see loss_power'),
    'product_dtype': fixed('float32', 'of the derivative along the path'),

    # End to end (REPA-E, arXiv 2504.10483): the autoencoder learns as well,
    # from images. Steps count from 0.
    'end_to_end': fixed(False, 'the VAE learns with the model'),
    'vae_lr': fixed(1e-4, 'of the VAE'),
    'vae_align_coefficient': fixed(1.5, 'of alignment in the loss of the VAE'),
    'kl_weight': fixed(1e-6, 'of the posterior, summed over a latent'),
    'perceptual_weight': fixed(1.0, 'of LPIPS; 0: none, and no file of it'),
    'lpips_range': fixed('released', 'images doubled, minus 1; or unit'),
    'adversarial_weight': fixed(0.1, '0: no discriminator'),
    'discriminator_lr': fixed(1e-4, 'of the discriminator'),
    'discriminator_start': fixed(0, 'the first step with its loss'),
    'discriminator_groups': fixed(
        1, 'of rows with batch statistics of their own; released: 8, the GPUs'
    ),
    'diffusion_start': fixed(0, 'before it the autoencoder learns alone'),
    'freeze_vae_from': fixed(0, 'from it on the model learns alone; 0: never'),
    'bn_momentum': fixed(0.1, 'of the statistics of the latents'),
    'train_positions': fixed(False, 'the position table, as released'),
    'vae_statistics': free(
        '', "latents-stats file to start from; '' is those of the data set"
    ),
    'discriminator_weights': free('', "path or hub id; '' is random"),
    'lpips_weights': free(
        '', "VGG-16 and heads, path or hub id each; '' is the published ones"
    ),

    # Optimiser: AdamW after clipping the global norm.
    'steps': free(400_000, 'of the whole run'),
    'lr': fixed(1e-4, 'after the warm-up'),
    'warmup_steps': fixed(0, 'linear, from lr / steps; then constant'),
    'warmup_epochs': fixed(0.0, 'instead of steps: linear, from 0'),
    'decay_steps': fixed(0, 'along a cosine to lr_min at this step; 0 is never'),
    'lr_min': fixed(0.0, 'after decay_steps'),
    'betas': fixed((0.9, 0.999), 'of AdamW'),
    'adam_eps': fixed(1e-8, 'of AdamW'),
    'weight_decay': fixed(0.0, 'of AdamW'),
    'decayed': fixed(
        'preset',
        'matrices; all: biases and norms too, as torch; preset: all in'
        ' irepa_released, matrices in the others',
    ),
    'clip': fixed(1.0, '0 is off'),
    'ema': fixed((0.9999,), 'decays; the first is sampled from'),
    'accumulate': free(1, 'microbatches per step'),
    'max_skipped': free(10, 'consecutive steps with NaN before the run stops'),

    # Devices: 'data' splits the batch, 'model' the matrices (tensor parallel);
    # 'replica' splits the batch over copies of the weights.
    'mesh_data': free(-1, '-1: all the rest'),
    'mesh_model': free(1, 'devices that split matrices'),
    'mesh_replica': free(-1, '-1: one per slice, or node; 1: weights over all'),
    'fsdp': free(True, "split parameters and optimiser over 'data' as well"),
    'allow_subset': free(False, 'leave devices idle when the mesh is smaller'),

    # The run directory.
    'log_every': free(100, 'steps'),
    'checkpoint_every': free(5_000, 'steps'),
    'keep': free(3, 'newest checkpoints'),
    'keep_every': free(100_000, 'and every such step for ever; 0 is none'),
    'max_failed_saves': free(3, 'in a row before the run stops'),
    'resume': free('auto', 'force: take over a run of another config'),
    'wandb': free('', 'project name'),
    'profile_steps': free(0, 'steps in the trace, starting at the tenth'),
    'watchdog_s': free(1800, 'end a hung process with a stack; 0 is off'),

    # Sampling: the grids of a run and the defaults of tools.sample.
    'sample_every': free(10_000, 'steps; 0 is never'),
    'sample_count': free(64, 'images of a grid'),
    'sampler': free('euler_maruyama', 'euler, heun'),
    'sample_steps': free(250, 'of the sampler'),
    'guidance': free(1.0, 'scale; 1 is none'),
    'guidance_low': free(0.0, 'guided where low <= t <= high'),
    'guidance_high': free(1.0, 'guided where low <= t <= high'),
    'guidance_ends': free(
        'closed', 'judged once a step; open: low < t < high, whenever evaluated'
    ),
    'labels': free('random', 'or balanced'),
    'quantise': free('truncate', 'as released; or round'),

    # Scores in flight, of images from the first average: 0 is off. `digits`
    # judges the quickstart; `fid` gives FID, sFID, Inception Score and, where the
    # reference has images, precision, recall and KID.
    'eval_every': free(0, 'steps; 0 is never'),
    'eval_count': free(500, 'images; FIDs compare only at the same count'),
    'eval_final_count': free(0, 'images at the last step; 0 is eval_count'),
    'evaluator': free('', 'digits, fid; empty is none'),
    'eval_reference': free('', 'of fid: npz of ADM, folder, prepared data set'),
    'eval_inception': free('', "path or hub id; '' is the published file"),
}
# fmt: on

# Alignment presets. Where the paper and its released trainer differ, `irepa`
# is the paper and `irepa_released` is what the released command computes.
ALIGNMENT = {
    # Plain flow matching: no encoder, no projector.
    'none': dict(encoder='', align_coefficient='0.0'),
    # REPA, arXiv 2410.06940: MLP projector, raw features, coefficient 0.5.
    'repa': dict(projector='mlp', spatial_norm=False, align_coefficient='0.5'),
    # iREPA, arXiv 2512.10794: 3x3 convolution, spatial normalisation.
    'irepa': dict(
        projector='conv',
        projector_kernel=3,
        spatial_norm=True,
        align_coefficient='1.0',
    ),
    # The released latent trainer leaves the kernel at its default of 1.
    'irepa_released': dict(
        projector='conv',
        projector_kernel=1,
        spatial_norm=True,
        align_coefficient='1.0',
    ),
}

# JiT on pixels, arXiv 2511.13720, and as iREPA trains it for 200k steps. Times
# are ours, 1 - t of the paper: its mean of logit(t) is -0.8, its interval of
# guidance (0.1, 1).
JIT = dict(
    autoencoder='pixels',
    flips=True,
    prediction='x',
    loss_space='v',
    divisor_floor=0.05,
    time='logit_normal',
    time_mean=0.8,
    time_std=0.8,
    projector_kernel=3,
    gamma=0.8,
    batch_size=256,
    steps=200_000,
    lr=5e-5,
    warmup_epochs=5.0,
    betas=(0.9, 0.95),
    clip=0.0,
    ema=(0.9999, 0.9996),
    sampler='euler',
    sample_steps=50,
    guidance_low=0.0,
    guidance_high=0.9,
    guidance_ends='open',
    labels='balanced',
    quantise='round',
)
# The paper's own run: 200 epochs of 1,251 steps, at the same rate per image.
JIT_LONG = dict(batch_size=1024, steps=250_200, lr=2e-4, sampler='heun')


def get_config(preset='irepa'):
  """Returns the fields of SiT-XL/2 at 256 pixels with an alignment preset."""
  if preset not in ALIGNMENT:
    raise ValueError(f'alignment preset {preset!r}: one of {list(ALIGNMENT)}')
  config = ml_collections.ConfigDict({k: f.default for k, f in FIELDS.items()})
  config.preset = preset
  config.update(ALIGNMENT[preset])
  return config


def get_jit(preset, *, guidance):
  """Returns the fields of JiT at 256 pixels, but for its size.

  preset: `none` is the paper's run of 200 epochs, sampled with `guidance`; the
    others are iREPA's of 200k steps without: `none_short`, and those of
    ALIGNMENT, of which the released code of JiT knows one iREPA.
  """
  config = get_config('none' if preset == 'none_short' else preset)
  config.update(JIT)
  config.preset = preset
  if config.encoder:
    config.align_coefficient = '0.5'
  if preset == 'none':
    config.update(JIT_LONG)
    config.guidance = guidance
  return config
