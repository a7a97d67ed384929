"""Every field of a configuration that cannot work gives one clear line."""

import math

import pytest

from configs import base
from configs import quickstart
from configs import quickstart_meanflow
from irepa_jax import check
from irepa_jax import errors

NAN = math.nan
TWO = 'dinov2-vit-b,hog-vit-g16_d128'

# Fields and what the line says beside the first of them and its value.
WRONG = [
    (dict(betas=(0.9,)), '2 numbers'),
    (dict(betas=(0.9, 0.99, 0.999)), '2 numbers'),
    (dict(betas=(0.9, 1.0)), '2 numbers'),
    (dict(betas=(0.9, 'x')), '2 numbers'),
    (dict(ema=()), 'one decay or more'),
    (dict(ema=(1.0,)), r'in \[0, 1\)'),
    (dict(lr=0.0), 'above 0'),
    (dict(lr=NAN), 'above 0'),
    (dict(adam_eps=-1e-8), 'at least 0'),
    (dict(weight_decay=-0.1), 'at least 0'),
    (dict(clip=NAN), 'at least 0'),
    (dict(warmup_steps=-1), 'at least 0'),
    (dict(steps=0), 'at least 1'),
    (dict(batch_size=0), 'at least 1'),
    (dict(batch_size=10, accumulate=4), 'a multiple of accumulate=4'),
    (dict(accumulate=0), 'at least 1'),
    (dict(label_dropout=1.0), 'a probability'),
    (dict(label_dropout=-0.1), 'a probability'),
    (dict(num_classes=0), 'at least 1'),
    (dict(image_size=0), 'at least 1'),
    (dict(dtype='float16'), "did you mean 'bfloat16'"),
    (dict(encoder_dtype='fp32'), 'one of float32, bfloat16'),
    (dict(attention='flash'), 'one of auto, xla, cudnn'),
    (dict(remat='name'), "did you mean 'names'"),
    (dict(path='linaer'), "did you mean 'linear'"),
    (dict(prediction='u'), 'one of v, x, eps'),
    (dict(time='logitnormal'), "did you mean 'logit_normal'"),
    (dict(time_std=0.0), 'above 0'),
    (dict(projector='cnv'), "did you mean 'conv'"),
    (dict(projector_kernel=2), r'one of \(1, 3, 5, 7\)'),
    (dict(projector_hidden=0), 'at least 1'),
    (dict(align_depth=0), 'at least 1'),
    (dict(gamma=-0.5), 'at least 0'),
    (dict(align_coefficient='one'), 'one number'),
    (dict(align_coefficient='1,0.5'), 'each of the 1 encoders'),
    (dict(align_coefficient='1,1,1', encoder=TWO), 'each of the 2 encoders'),
    (dict(align_coefficient='-1'), 'from 0'),
    (dict(align_coefficient='nan'), 'from 0'),
    (dict(encoder_weights='a,b'), 'each of the 1 encoders'),
    (dict(encoder_weights='a', encoder=TWO), 'each of the 2 encoders'),
    (dict(features='cache'), "did you mean 'cached'"),
    (dict(mesh_data=0), '-1 for all'),
    (dict(mesh_data=-2), '-1 for all'),
    (dict(mesh_replica=0), '-1 for one for each group'),
    (dict(mesh_model=0), 'at least 1'),
    (dict(data_threads=-1), 'at least 0'),
    (dict(prefetch=0), 'at least 1'),
    (dict(log_every=0), 'at least 1'),
    (dict(checkpoint_every=0), 'at least 1'),
    (dict(keep=0), 'at least 1'),
    (dict(keep_every=-1), 'at least 0'),
    (dict(max_failed_saves=0), 'at least 1'),
    (dict(max_skipped=0), 'at least 1'),
    (dict(profile_steps=-1), 'at least 0'),
    (dict(watchdog_s=-1), 'at least 0'),
    (dict(resume='yes'), 'one of auto, force'),
    (dict(sampler='heum'), "did you mean 'heun'"),
    (dict(sample_every=-1), 'at least 0'),
    (dict(sample_steps=0), 'at least 1'),
    (dict(sample_count=0), 'at least 1'),
    (dict(eval_every=-1), 'at least 0'),
    (dict(eval_count=0), 'at least 1'),
    (dict(eval_final_count=-1), 'at least 0'),
    (dict(labels='even'), 'one of random, balanced'),
    (dict(quantise='floor'), 'one of truncate, round'),
    (dict(loss_space='u'), 'one of'),
    (dict(divisor_floor=0.0), 'above 0'),
    (dict(noise_scale=-1.0), 'above 0'),
    (dict(noise_scale=2.0), '1 for euler_maruyama'),
    (dict(attn_dropout=1.0), 'a probability'),
    (dict(proj_dropout=-0.1), 'a probability'),
    (dict(warmup_epochs=-1.0), 'at least 0'),
    (dict(warmup_epochs=5.0, warmup_steps=10), 'one of the two'),
    (dict(decay_steps=-1), 'at least 0'),
    (dict(decay_steps=10, warmup_steps=10), 'more than warmup_steps=10'),
    (dict(lr_min=-1.0), 'at least 0'),
    (dict(guidance_ends='half'), 'one of closed, open'),
    (dict(guidance=0.5), '1 .none. or more'),
    (dict(guidance=NAN), '1 .none. or more'),
    (dict(guidance=float('inf')), '1 .none. or more'),
    (dict(decayed='biases'), 'preset, matrices, all'),
    (dict(guidance_low=0.9, guidance_high=0.1), 'an interval'),
    (dict(guidance_high=1.5), 'an interval'),
    (dict(objective='meanflow'), "did you mean 'mean_flow'"),
    (dict(product_dtype='float16'), "did you mean 'bfloat16'"),
    (dict(loss_eps=-0.01), 'at least 0'),
    (dict(loss_power=-1.0), 'at least 0'),
    (dict(omega_largest=0.5), 'at least 1'),
    (dict(lr=math.inf), 'must be finite'),
    (dict(time_mean=NAN), 'must be finite'),
    (dict(time_std=math.inf), 'must be finite'),
    (dict(weight_decay=math.inf), 'must be finite'),
    (dict(seed=2**70), 'in -2147483648 .. 4294967295'),
    (dict(seed=2**32), 'in -2147483648'),
]
# With the objective of MeanFlow.
WRONG_MEAN_FLOW = [
    (dict(sampler='heun'), "'euler' with objective=mean_flow"),
    (dict(path='cosine'), "'linear' with"),
    (dict(prediction='x'), "'v' with"),
    (dict(loss_space='x'), "'' with"),
    (dict(noise_scale=2.0), '1.0 with'),
    (dict(data_proportion=1.5), r'k / n in \[0, 1\]'),
    (dict(data_proportion=-0.25), r'k / n in \[0, 1\]'),
    (dict(data_proportion=0.77), 'n up to 16, as 0.75'),
    (dict(batch_size=6), 'a multiple of 4: data_proportion=0.75'),
    (dict(batch_size=36, accumulate=2), 'a multiple of 8'),
    (dict(omega_low=0.9, omega_high=0.1), 'an interval'),
    (dict(omega_high=1.5), 'an interval'),
    (dict(omega_low=-0.1), 'an interval'),
    (dict(kappa=1.0), r'in \[0, 1\)'),
    (dict(kappa=-0.1), r'in \[0, 1\)'),
    (dict(omega=0.5, kappa=0.5), r'above 1, not 1; \(1, 0\) is none'),
    (dict(omega=0.9), 'above 1, not 0.9'),
]


def changed(changes, preset='irepa'):
  config = base.get_config(preset)
  config.update(changes)
  return config


@pytest.mark.parametrize('changes, said', WRONG, ids=lambda x: str(x)[:60])
def test_a_field_that_cannot_work_is_named_with_its_value(changes, said):
  with pytest.raises(errors.UsageError, match=said) as raised:
    check.config(changed(changes))
  line = str(raised.value)
  assert '\n' not in line
  field, value = next(iter(changes.items()))
  if not field.startswith('guidance_'):
    assert f'config.{field} is ' in line and str(value) in line
  else:
    assert field in line


@pytest.mark.parametrize(
    'changes, said', WRONG_MEAN_FLOW, ids=lambda x: str(x)[:60]
)
def test_settings_of_mean_flow_that_cannot_work(changes, said):
  mean_flow = dict(objective='mean_flow', sampler='euler')
  with pytest.raises(errors.UsageError, match=said) as raised:
    check.config(changed(mean_flow | changes))
  assert '\n' not in str(raised.value)
  field, value = next(iter(changes.items()))
  assert field in str(raised.value) and str(value) in str(raised.value)


def test_a_config_without_some_fields_is_refused():
  config = changed({})
  del config.keep, config.betas
  with pytest.raises(errors.UsageError, match='has no field betas, keep; a'):
    check.config(config)


def test_a_field_that_nothing_reads_is_refused():
  config = changed({})
  config.align_dept = 3
  with pytest.raises(errors.UsageError, match="did you mean 'align_depth'"):
    check.config(config)


@pytest.mark.parametrize('preset', base.ALIGNMENT)
@pytest.mark.parametrize('module', [base, quickstart, quickstart_meanflow])
def test_every_preset_passes(module, preset):
  check.config(module.get_config(preset))


@pytest.mark.parametrize(
    'changes, coefficients',
    [
        (dict(encoder=TWO, align_coefficient='1,0.5'), (1.0, 0.5)),
        (dict(encoder=TWO, align_coefficient='0.5'), (0.5, 0.5)),
        (dict(encoder=''), ()),
    ],
)
def test_one_coefficient_or_one_for_each_encoder(changes, coefficients):
  config = changed(changes)
  check.config(config)
  assert check.coefficients(config) == coefficients


def test_only_some_of_the_encoders_need_weights_of_their_own():
  check.config(changed(dict(encoder=TWO, encoder_weights='a.pth,')))


def test_every_number_has_a_range_and_every_word_its_choices():
  free = {'seed', 'time_mean'}  # any integer, any number
  own = {
      'align_coefficient', 'attn_dropout', 'betas', 'bn_momentum',
      'data_proportion', 'discriminator_lr', 'divisor_floor', 'ema',
      'encoder_weights', 'guidance', 'guidance_high', 'guidance_low', 'kappa',
      'label_dropout', 'lpips_weights', 'lr', 'mesh_data', 'mesh_replica',
      'noise_scale', 'omega', 'omega_high', 'omega_low', 'proj_dropout',
      'projector_kernel', 'time_std', 'vae_lr',
  }  # fmt: skip
  # Checked where they are used: names of parts, paths, hub ids, projects.
  names = {
      'autoencoder', 'autoencoder_weights', 'data', 'discriminator_weights',
      'encoder', 'evaluator', 'eval_inception', 'eval_reference', 'model',
      'preset', 'vae_statistics', 'wandb',
  }  # fmt: skip
  known = {*check.CHOICES, *check.AT_LEAST, *free, *own, *names}
  config = base.get_config()
  flags = {k for k, v in config.items() if isinstance(v, bool)}
  assert set(config) - flags == known


@pytest.mark.parametrize(
    'changes, line',
    [
        (dict(accumulate=2), 'accumulate is 2; it must be 1 with end_to_end'),
        (dict(model='JiT-B/16'), 'a SiT with end_to_end'),
        (dict(batch_size=1), 'batch_size is 1; it must be 2 or more'),
        (dict(discriminator_groups=3), 'times discriminator_groups=3'),
        (dict(vae_lr=0.0), 'vae_lr is 0.0; it must be above 0'),
        (dict(bn_momentum=0.0), 'bn_momentum is 0.0'),
        (dict(lpips_weights='vgg.pth'), 'two paths or hub ids'),
        (dict(lpips_range='[0,1]'), 'lpips_range'),
    ],
)
def test_what_cannot_be_trained_end_to_end_is_refused_in_one_line(
    changes, line
):
  with pytest.raises(errors.UsageError) as caught:
    check.config(changed(dict(end_to_end=True) | changes))
  assert line in str(caught.value) and '\n' not in str(caught.value)
