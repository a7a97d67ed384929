"""Every field of an experiment, once, with its meaning.

An experiment file is the difference to this one. The part behind the colon of
`--config=configs/sit_xl.py:irepa` names an alignment preset (ALIGNMENT below);
`--config.field=value` overrides any field and always wins.
"""

import ml_collections

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


def get_config(preset='irepa'):
  """Returns the fields of SiT-XL/2 at 256 pixels with an alignment preset."""
  config = ml_collections.ConfigDict()
  config.preset = preset
  config.seed = 0

  # Data: a folder written by irepa_jax.tools.prepare.
  config.data = 'data/imagenet256'
  config.image_size = 256  # pixels
  config.num_classes = 1000
  config.autoencoder = 'sd-vae-ft-mse'
  config.autoencoder_weights = ''  # path or hub id; '' is its published source
  config.flips = False  # mirrored records, where the data set holds them
  config.batch_size = 256  # of the whole job, not of one device
  config.data_threads = 16
  config.prefetch = 2  # batches on the device ahead of the step
  config.skip_bad = False  # replace damaged records instead of stopping
  config.verify_data = False  # checksum every shard before the start

  # Model.
  config.model = 'SiT-XL/2'
  config.qk_norm = False
  config.dtype = 'bfloat16'  # of matrix products; parameters are float32
  config.attention = 'xla'  # or cudnn: flash attention of Hopper and Ampere
  config.scan_layers = True  # compiles several times faster than unrolled
  config.remat = 'names'  # none, names (recompute cheap layers), full

  # Alignment. Several encoders: 'dinov2-vit-b,hog-vit-g16_d128'.
  config.encoder = 'dinov2-vit-b'
  config.encoder_weights = ''  # path or hub id each, comma separated
  config.encoder_dtype = 'bfloat16'
  config.encoder_scan = False  # over layers: a large one compiles faster
  config.features = 'online'  # or cached: features written by prepare
  config.align_depth = 8  # the block, from 1, whose tokens are aligned
  config.align_coefficient = '1.0'  # one number, or one per encoder: '1,0.5'
  config.projector = 'conv'  # mlp, linear, conv
  config.projector_kernel = 3  # of conv: 1, 3, 5, 7
  config.projector_hidden = 2048  # of mlp
  config.spatial_norm = True
  config.gamma = 0.6  # share of the mean that spatial_norm takes away

  # Diffusion. t = 0 is data, t = 1 is noise.
  config.path = 'linear'  # or cosine
  config.prediction = 'v'  # what the network returns: v, x, eps
  config.time = 'uniform'  # lognormal, logit_normal
  config.time_mean = 0.0  # of logit_normal
  config.time_std = 1.0
  config.label_dropout = 0.1

  # Optimiser: AdamW after clipping the global norm.
  config.steps = 400_000
  config.lr = 1e-4
  config.warmup_steps = 0  # linear, then constant
  config.betas = (0.9, 0.999)
  config.adam_eps = 1e-8
  config.weight_decay = 0.0
  config.clip = 1.0  # 0 is off
  config.ema = (0.9999,)  # decays; the first is sampled from
  config.accumulate = 1  # microbatches per step
  config.max_skipped = 10  # consecutive steps with NaN before the run stops

  # Devices: 'data' splits the batch, 'model' the matrices (tensor parallel).
  config.mesh_data = -1  # -1: all the rest
  config.mesh_model = 1
  config.fsdp = True  # split parameters and optimiser over 'data' as well
  config.allow_subset = False  # leave devices idle when the mesh is smaller

  # The run directory.
  config.log_every = 100  # steps
  config.checkpoint_every = 5_000
  config.keep = 3  # newest checkpoints
  config.keep_every = 100_000  # and every such step for ever; 0 is none
  config.max_failed_saves = 3
  config.resume = 'auto'  # force: take over a run of another config
  config.wandb = ''  # project name
  config.profile_steps = 0  # steps in the trace, starting at the tenth
  config.watchdog_s = 1800  # end a hung process with a stack; 0 is off

  # Sampling: the grids of a run and the defaults of tools.sample.
  config.sample_every = 10_000
  config.sample_count = 64
  config.sampler = 'euler_maruyama'  # euler, heun
  config.sample_steps = 250
  config.guidance = 1.0  # scale; 1 is none
  config.guidance_low = 0.0  # guided where low <= t <= high
  config.guidance_high = 1.0
  config.labels = 'random'  # or balanced
  config.quantise = 'truncate'  # as released; or round

  # Scores in flight, of images from the first average: 0 is off. `digits`
  # judges the quickstart; `fid` gives FID, sFID, Inception Score and, where the
  # reference has images, precision, recall and KID.
  config.eval_every = 0
  config.eval_count = 500  # images; FIDs compare only at the same count
  config.eval_final_count = 0  # images at the last step; 0 is eval_count
  config.evaluator = ''
  config.eval_reference = ''  # of fid: npz of ADM, folder, prepared data set
  config.eval_inception = ''  # path or hub id; '' is the published file
  if preset not in ALIGNMENT:
    raise ValueError(f'alignment preset {preset!r}: one of {list(ALIGNMENT)}')
  config.update(ALIGNMENT[preset])
  return config
