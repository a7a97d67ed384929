"""Checks of a configuration that need no device and no file.

Each raises UsageError with one line that names the field, the value seen and
what would be right. They run before anything is compiled; `main --check` runs
them, and the checks of files and mesh, alone.
"""

import difflib
import math

from irepa_jax import errors
from irepa_jax.names.experiments import base

CHOICES = {
    'attention': ('auto', 'xla', 'cudnn'),
    'decayed': ('preset', 'matrices', 'all'),
    'dtype': ('float32', 'bfloat16'),
    'encoder_dtype': ('float32', 'bfloat16'),
    'features': ('online', 'cached'),
    'guidance_ends': ('closed', 'open'),
    'labels': ('random', 'balanced'),
    'lpips_range': ('released', 'unit'),
    'loss_space': ('', 'v', 'x', 'eps'),
    'objective': ('flow_matching', 'mean_flow', 'improved_mean_flow'),
    'path': ('linear', 'cosine'),
    'prediction': ('v', 'x', 'eps'),
    'product_dtype': ('float32', 'bfloat16'),
    'projector': ('mlp', 'linear', 'conv'),
    'quantise': ('truncate', 'round'),
    'remat': ('none', 'names', 'full'),
    'resume': ('auto', 'force'),
    'sampler': ('euler', 'heun', 'euler_maruyama'),
    'time': ('uniform', 'lognormal', 'logit_normal'),
}
AT_LEAST = {
    'accumulate': 1,
    'adam_eps': 0,
    'adversarial_weight': 0,
    'align_depth': 1,
    'batch_size': 1,
    'checkpoint_every': 1,
    'clip': 0,
    'data_threads': 0,
    'decay_steps': 0,
    'diffusion_start': 0,
    'discriminator_groups': 1,
    'discriminator_start': 0,
    'eval_count': 1,
    'eval_every': 0,
    'eval_final_count': 0,
    'freeze_vae_from': 0,
    'gamma': 0,
    'image_size': 1,
    'keep': 1,
    'keep_every': 0,
    'kl_weight': 0,
    'log_every': 1,
    'lr_min': 0,
    'loss_eps': 0,
    'loss_power': 0,
    'max_failed_saves': 1,
    'max_skipped': 1,
    'mesh_model': 1,
    'num_classes': 1,
    'perceptual_weight': 0,
    'omega_largest': 1,
    'prefetch': 1,
    'profile_steps': 0,
    'projector_hidden': 1,
    'sample_count': 1,
    'sample_every': 0,
    'sample_steps': 1,
    'steps': 1,
    'vae_align_coefficient': 0,
    'warmup_epochs': 0,
    'warmup_steps': 0,
    'watchdog_s': 0,
    'weight_decay': 0,
}
# What -1 stands for.
REST = {
    'mesh_data': 'all that mesh_model and mesh_replica leave',
    'mesh_replica': 'one for each group of devices',
}
SEEDS = -(2**31), 2**32 - 1  # JAX takes 32 bits of a seed
KERNELS = (1, 3, 5, 7)
# What the autoencoder and the model learn together with.
END_TO_END = {
    'objective': 'flow_matching',
    'noise_scale': 1.0,
    'warmup_epochs': 0,
    'decay_steps': 0,
}
# Mean velocities are learnt, and sampled from, on the linear path alone.
MEAN_FLOW = {
    'loss_space': '',
    'noise_scale': 1.0,
    'path': 'linear',
    'prediction': 'v',
    'sampler': 'euler',
}


def config(config):
  """Checks every field of an experiment and those that depend on others."""
  _complete(config)
  for field, allowed in CHOICES.items():
    _choice(field, config[field], allowed)
  for field, least in AT_LEAST.items():
    value = config.get(field, least)  # absent from the config of an older run
    _require(value >= least, field, value, f'at least {least}')
  for field, rest in REST.items():
    value = config.get(field, -1)
    _require(
        value == -1 or value >= 1, field, value, f'1 or more, or -1 for {rest}'
    )
  for field in ('time_std', 'divisor_floor', 'noise_scale'):
    _require(config[field] > 0, field, config[field], 'above 0')
  _optimiser(config)
  _pixels(config)
  _alignment(config)
  if config.end_to_end:
    _end_to_end(config)
  guidance(config.guidance, config.guidance_low, config.guidance_high)
  if config.objective != 'flow_matching':
    _mean_flow(config)
  _numbers(config)


def guidance(scale, low, high):
  """Checks a guidance scale and its interval of t."""
  finite = 1 <= scale < math.inf
  _require(finite, 'guidance', scale, '1 (none) or more')
  _require(
      0 <= low <= high <= 1,
      'guidance_low, guidance_high',
      (low, high),
      'an interval 0 <= low <= high <= 1',
  )


def coefficients(config):
  """Returns the alignment coefficient of each encoder of the config."""
  count = len(encoder_names(config))
  try:
    values = tuple(float(c) for c in str(config.align_coefficient).split(','))
  except ValueError:
    values = ()
  _require(
      len(values) in (1, max(count, 1))
      and all(0 <= v < math.inf for v in values),
      'align_coefficient',
      config.align_coefficient,
      f'one number from 0, or one for each of the {count} encoders',
  )
  return values * count if len(values) == 1 else values


def encoder_names(config):
  """Returns the names of the encoders, none for an empty field."""
  return tuple(n.strip() for n in config.encoder.split(',') if n.strip())


def _complete(config):
  """Raises UsageError for a config file that lost fields or invents some."""
  lost = sorted(base.FIELDS.keys() - set(config))
  if lost:
    raise errors.UsageError(
        f'the config has no field {", ".join(lost[:5])}; a config file changes'
        ' the fields of configs.base.get_config()'
    )
  extra = sorted(set(config) - base.FIELDS.keys() - {'preset'})
  if extra:
    near = difflib.get_close_matches(extra[0], base.FIELDS, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise errors.UsageError(
        f'the config has a field {extra[0]!r}{hint}, which nothing reads'
    )


def _numbers(config):
  """Raises UsageError for numbers that are none, and seeds of too many bits."""
  for field, value in sorted(config.items()):
    values = value if isinstance(value, tuple | list) else (value,)
    numbers = [v for v in values if isinstance(v, float)]
    _require(
        all(map(math.isfinite, numbers)), field, value, 'finite'
    )
  low, high = SEEDS
  _require(
      low <= config.seed <= high, 'seed', config.seed, f'in {low} .. {high}'
  )


def _optimiser(config):
  _require(
      len(config.betas) == 2 and _shares(config.betas),
      'betas',
      config.betas,
      '2 numbers in [0, 1), as --config.betas="(0.9,0.999)"',
  )
  _require(config.lr > 0, 'lr', config.lr, 'above 0')
  _require(
      len(config.ema) > 0 and _shares(config.ema),
      'ema',
      config.ema,
      'one decay or more in [0, 1)',
  )
  _require(
      0 <= config.label_dropout < 1,
      'label_dropout',
      config.label_dropout,
      'a probability in [0, 1)',
  )
  _require(
      config.batch_size % config.accumulate == 0,
      'batch_size',
      config.batch_size,
      f'a multiple of accumulate={config.accumulate}',
  )


def _pixels(config):
  """Checks what came with JiT: dropout, the schedule, the scale of the noise."""
  for field in ('attn_dropout', 'proj_dropout'):
    share = config[field]
    _require(_shares([share]), field, share, 'a probability in [0, 1)')
  _require(
      not (config.warmup_epochs and config.warmup_steps),
      'warmup_epochs',
      config.warmup_epochs,
      f'0 where warmup_steps is {config.warmup_steps}: one of the two',
  )
  _require(
      not config.decay_steps or config.decay_steps > config.warmup_steps,
      'decay_steps',
      config.decay_steps,
      f'0, or more than warmup_steps={config.warmup_steps}',
  )
  _require(
      config.noise_scale == 1 or config.sampler != 'euler_maruyama',
      'noise_scale',
      config.noise_scale,
      '1 for euler_maruyama, whose score is of unit noise; or use heun, euler',
  )


def _alignment(config):
  coefficients(config)
  _require(
      config.projector_kernel in KERNELS,
      'projector_kernel',
      config.projector_kernel,
      f'one of {KERNELS}',
  )
  given, count = config.encoder_weights, len(encoder_names(config))
  _require(
      not given or len(given.split(',')) == count,
      'encoder_weights',
      repr(given),
      f'empty, or a path or hub id (or nothing) for each of the {count} encoders',
  )


def _end_to_end(config):
  """Checks what only a trainer of the autoencoder as well is asked."""
  _require(
      str(config.model).startswith('SiT-'),
      'model',
      repr(config.model),
      'a SiT with end_to_end: it takes latents',
  )
  _require(
      config.accumulate == 1,
      'accumulate',
      config.accumulate,
      '1 with end_to_end: batch statistics are those of the whole batch',
  )
  for field, wanted in END_TO_END.items():
    _require(
        config[field] == wanted,
        field,
        repr(config[field]),
        f'{wanted!r} with end_to_end',
    )
  groups = config.discriminator_groups
  _require(
      config.batch_size > groups and config.batch_size % groups == 0,
      'batch_size',
      config.batch_size,
      f'2 or more times discriminator_groups={groups}, as every group has batch'
      ' statistics of its own',
  )
  for field in ('vae_lr', 'discriminator_lr'):
    _require(config[field] > 0, field, config[field], 'above 0')
  _require(
      0 < config.bn_momentum <= 1,
      'bn_momentum',
      config.bn_momentum,
      'above 0 and at most 1',
  )
  _require(
      config.lpips_weights.count(',') == bool(config.lpips_weights),
      'lpips_weights',
      repr(config.lpips_weights),
      'empty, or two paths or hub ids: VGG-16 and the heads, comma separated',
  )


def _mean_flow(config):
  for field, wanted in MEAN_FLOW.items():
    _require(
        config[field] == wanted,
        field,
        repr(config[field]),
        f'{wanted!r} with objective={config.objective}',
    )
  share = config.data_proportion
  counts = [n for n in range(1, 17) if abs(share * n - round(share * n)) < 1e-6]
  _require(
      0 <= share <= 1 and counts,
      'data_proportion',
      share,
      'k / n in [0, 1] with n up to 16, as 0.75',
  )
  rows = config.batch_size // config.accumulate
  _require(
      rows % counts[0] == 0,
      'batch_size',
      config.batch_size,
      f'a multiple of {counts[0] * config.accumulate}: data_proportion={share}'
      f' is exact among {counts[0]} rows',
  )
  _require(
      0 <= config.omega_low <= config.omega_high <= 1,
      'omega_low, omega_high',
      (config.omega_low, config.omega_high),
      'an interval 0 <= low <= high <= 1',
  )
  _require(0 <= config.kappa < 1, 'kappa', config.kappa, 'in [0, 1)')
  scale = config.omega / (1 - config.kappa)
  _require(
      scale > 1 + 1e-6 or (config.omega, config.kappa) == (1, 0),
      'omega, kappa',
      (config.omega, config.kappa),
      f'a scale omega / (1 - kappa) above 1, not {scale:g}; (1, 0) is none',
  )


def _shares(values):
  """Whether all values are numbers in [0, 1)."""
  return all(isinstance(v, int | float) and 0 <= v < 1 for v in values)


def _choice(field, value, allowed):
  near = difflib.get_close_matches(str(value), allowed, n=1)
  hint = f' (did you mean {near[0]!r}?)' if near else ''
  _require(
      value in allowed, field, repr(value), f'one of {", ".join(allowed)}{hint}'
  )


def _require(condition, field, value, wanted):
  if not condition:
    raise errors.UsageError(f'config.{field} is {value}; it must be {wanted}')
