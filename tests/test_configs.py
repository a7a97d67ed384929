"""Every experiment with every preset builds, and holds the stated recipe."""

import ast
import functools
import importlib
import pathlib
import re
import subprocess
import sys

import golden_files
import jax
import jax.numpy as jnp
import pytest

from configs import base
from irepa_jax import build
from irepa_jax import check
from irepa_jax.jobs import setup

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem[0] != '_')
EXPERIMENTS = [name for name in FILES if name != 'base']
IMAGENET = ('sit_s', 'sit_b', 'sit_l', 'sit_xl')
PIXELS = ('jit_b', 'jit_l', 'jit_h')
PRESETS = tuple(base.ALIGNMENT)

# arXiv 2512.10794 and 2410.06940; for irepa_released the released trainer,
# whose command line leaves the kernel at 1.
ALIGNMENT = {
    'none': dict(encoder='', align_coefficient='0.0'),
    'repa': dict(
        projector='mlp', spatial_norm=False, align_coefficient='0.5'
    ),
    'irepa': dict(
        projector='conv',
        projector_kernel=3,
        spatial_norm=True,
        gamma=0.6,
        align_coefficient='1.0',
    ),
    'irepa_released': dict(
        projector='conv',
        projector_kernel=1,
        spatial_norm=True,
        gamma=0.6,
        align_coefficient='1.0',
    ),
}
RECIPE = dict(
    batch_size=256,
    lr=1e-4,
    betas=(0.9, 0.999),
    adam_eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    clip=1.0,
    ema=(0.9999,),
    steps=400_000,
    path='linear',
    prediction='v',
    time='uniform',
    label_dropout=0.1,
    flips=False,
    image_size=256,
    num_classes=1000,
    autoencoder='sd-vae-ft-mse',
    qk_norm=False,
    dtype='bfloat16',
    projector_hidden=2048,
    sampler='euler_maruyama',
    sample_steps=250,
    guidance=1.0,
    labels='random',
    quantise='truncate',
)
# model, depth of alignment; of S nothing is published: as B.
MODELS = {
    'sit_s': ('SiT-S/2', 4),
    'sit_b': ('SiT-B/2', 4),
    'sit_l': ('SiT-L/2', 8),
    'sit_xl': ('SiT-XL/2', 8),
}
# arXiv 2505.13447, table 4 and the released code; by name (model, depth of
# alignment, omega, kappa, end of the interval). Of the rest RECIPE holds.
MEAN_FLOW = {
    'meanflow_b': ('SiT-B/2', 4, 1.0, 0.5, 1.0),
    'meanflow_xl': ('SiT-XL/2', 8, 0.2, 0.92, 0.75),
}
MEAN_FLOW_RECIPE = RECIPE | dict(
    betas=(0.9, 0.95),
    clip=0.0,
    steps=240 * 5004,
    objective='mean_flow',
    data_proportion=0.75,
    omega_low=0.0,
    loss_power=1.0,
    loss_eps=0.01,
    time='logit_normal',
    time_mean=-0.4,
    time_std=1.0,
    product_dtype='float32',
    sampler='euler',
    sample_steps=1,
)
# The projectors of the presets among the counts of the released code.
COUNTED = {
    'none': ('mlp', 'without_projector'),
    'repa': ('mlp', 'total'),
    'irepa': ('conv_k3', 'total'),
    'irepa_released': ('conv_k1', 'total'),
}


def get(name, preset='irepa'):
  return importlib.import_module(f'configs.{name}').get_config(preset)


@functools.cache
def state_of(name, preset):
  config = get(name, preset)
  built = build.experiment(config)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(lambda k: setup.init_state(built, config, k), key)


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_builds_its_abstract_state(name, preset):
  config, state = get(name, preset), state_of(name, preset)
  learned = {'vae', 'discriminator'} if config.end_to_end else set()
  learned -= {'discriminator'} if not config.adversarial_weight else set()
  assert set(state.params) == {'model', 'projector'} | learned
  assert bool(state.params['projector']) == (preset != 'none')
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
  averaged = {k: v for k, v in state.params.items() if k not in learned}
  if config.end_to_end:
    bn = state.model_state['bn']
    averaged['bn'] = {k: bn[k] for k in ('mean', 'var')}
  assert state.ema == (averaged,) * len(config.ema)


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('name', IMAGENET[1:])  # the released S cannot run
def test_models_have_the_published_number_of_parameters(name, preset):
  state = state_of(name, preset)
  count = sum(x.size for x in jax.tree.leaves(state.params))
  counts = golden_files.load_json('arch_fingerprint')['SiT']
  projector, field = COUNTED[preset]
  assert count == counts[MODELS[name][0]][projector][field]


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_presets_are_those_of_the_papers(name, preset):
  config = get(name, preset)
  assert config.preset == preset
  wanted = dict(ALIGNMENT[preset])
  if name.startswith('quickstart') and config.encoder:
    wanted['align_coefficient'] = '4.0'  # HOG is no encoder of the papers
  if name in PIXELS and config.encoder:
    # Of iREPA on JiT, paper and released code are one.
    wanted |= dict(align_coefficient='0.5', projector_kernel=3, gamma=0.8)
  assert not {k: config[k] for k, v in wanted.items() if config[k] != v}
  assert bool(check.encoder_names(config)) == (preset != 'none')


@pytest.mark.parametrize('name', IMAGENET)
def test_recipes_are_those_of_the_papers(name):
  config = get(name)
  assert not {k: config[k] for k, v in RECIPE.items() if config[k] != v}
  assert (config.model, config.align_depth) == MODELS[name]
  assert config.encoder == 'dinov2-vit-b'


# arXiv 2511.13720, and 2512.10794 for runs of 200k steps; times are 1 - t.
JIT = dict(
    autoencoder='pixels',
    image_size=256,
    num_classes=1000,
    flips=True,
    path='linear',
    prediction='x',
    loss_space='v',
    divisor_floor=0.05,
    noise_scale=1.0,
    time='logit_normal',
    time_mean=0.8,
    time_std=0.8,
    label_dropout=0.1,
    warmup_epochs=5.0,
    warmup_steps=0,
    decay_steps=0,
    betas=(0.9, 0.95),
    adam_eps=1e-8,
    weight_decay=0.0,
    clip=0.0,
    ema=(0.9999, 0.9996),
    projector_hidden=2048,
    attn_dropout=0.0,
    sample_steps=50,
    guidance_low=0.0,
    guidance_high=0.9,
    guidance_ends='open',
    labels='balanced',
    quantise='round',
)
# Size, depth of alignment, dropout, guidance of the paper's row.
JIT_MODELS = {
    'jit_b': ('JiT-B/16', 4, 0.0, 2.9),
    'jit_l': ('JiT-L/16', 8, 0.0, 2.4),
    'jit_h': ('JiT-H/16', 8, 0.2, 2.2),
}


@pytest.mark.parametrize('preset', ['none', 'none_short', 'repa', 'irepa'])
@pytest.mark.parametrize('name', PIXELS)
def test_recipes_of_jit_are_those_of_the_papers(name, preset):
  config = get(name, preset)
  wanted = dict(JIT, preset=preset)
  wanted |= dict(batch_size=256, steps=200_000, sampler='euler', guidance=1.0)
  if preset == 'none':
    guidance = JIT_MODELS[name][3]
    wanted |= dict(batch_size=1024, steps=1251 * 200, sampler='heun')
    wanted |= dict(guidance=guidance)
  wanted |= dict(lr=5e-5 * wanted['batch_size'] / 256)
  assert {k: config[k] for k in wanted} == wanted
  found = (config.model, config.align_depth, config.proj_dropout)
  assert found == JIT_MODELS[name][:3]
  aligned = preset in ('repa', 'irepa')
  assert config.encoder == ('dinov2-vit-b' if aligned else '')


@pytest.mark.parametrize('batch, steps', [(256, 25_020), (1024, 6255)])
def test_five_epochs_of_imagenet(batch, steps):
  config = get('jit_l')
  config.batch_size = batch
  optimizer = build.optimizer(config)
  rates = lambda count: _rate(optimizer, count)
  assert rates(0) == 0
  for count, share in ((steps // 5, 0.2), (steps - 1, 1 - 1 / steps), (steps, 1)):
    assert rates(count) == pytest.approx(share * config.lr, rel=1e-6)


def _rate(optimizer, count):
  """Returns the step of AdamW with constant gradients, which is the rate."""
  params = {'w': jnp.ones(())}
  state = optimizer.init(params)
  state = jax.tree.map(lambda x: x + count if x.dtype == jnp.int32 else x, state)
  with jax.numpy_dtype_promotion('standard'):
    updates, _ = optimizer.update({'w': jnp.ones(())}, state, params)
  moment, square = 0.1 / (1 - 0.9 ** (count + 1)), 0.05 / (1 - 0.95 ** (count + 1))
  return -float(updates['w']) / (moment / square**0.5)


@pytest.mark.parametrize('name', MEAN_FLOW)
def test_recipes_of_mean_flow_are_those_of_the_paper(name):
  config = get(name)
  wrong = {k for k, v in MEAN_FLOW_RECIPE.items() if config[k] != v}
  assert not wrong
  found = (config.model, config.align_depth, config.omega, config.kappa)
  assert (*found, config.omega_high) == MEAN_FLOW[name]
  assert config.encoder == 'dinov2-vit-b'


@pytest.mark.parametrize('preset', ['none_noguidance', 'irepa_noguidance'])
@pytest.mark.parametrize('name', MEAN_FLOW)
def test_mean_flow_without_guidance_differs_in_nothing_else(name, preset):
  config = get(name, preset)
  assert config.preset == preset
  assert (config.omega, config.kappa, config.omega_high) == (1, 0, 1)
  guided = get(name, preset.removesuffix('_noguidance'))
  own = {'preset', 'omega', 'kappa', 'omega_high'}
  assert {k for k in config if config[k] != guided[k]} <= own
  build.experiment(config)


@pytest.mark.parametrize(
    'name, count',
    # SiT-B/2 and XL/2 without their table, plus h_embedder.
    [('meanflow_b', 131_091_472), ('meanflow_xl', 676_440_592)],
)
def test_models_of_mean_flow_have_the_official_number_of_parameters(
    name, count
):
  params = dict(state_of(name, 'none').params['model'])
  params.pop('pos_embed')
  assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_presets_differ_in_nothing_but_alignment():
  own = {'preset', 'encoder', 'align_coefficient', 'projector'}
  own |= {'projector_kernel', 'spatial_norm'}
  for name in EXPERIMENTS:
    # Of JiT, `none` is the paper's own run, which is longer.
    short = {'none': 'none_short'} if name in PIXELS else {}
    configs = [get(name, short.get(preset, preset)) for preset in PRESETS]
    common = [{k: v for k, v in c.items() if k not in own} for c in configs]
    assert all(c == common[0] for c in common), name


def test_the_paper_is_the_default():
  for name in EXPERIMENTS:
    module = importlib.import_module(f'configs.{name}')
    assert module.get_config() == module.get_config('irepa')


def test_an_unknown_preset_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="preset 'rep': one of .*'repa'"):
    base.get_config('rep')


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_adds_no_field_and_changes_no_type(name):
  fields = base.get_config()
  for key, value in get(name).items():
    assert key in fields, key
    assert type(value) is type(fields[key]), key


def test_every_field_can_be_overridden_on_the_command_line():
  # Of ml_collections, a field that is None cannot.
  for key, value in base.get_config().items():
    assert isinstance(value, bool | int | float | str | tuple), key


def test_every_field_is_read():
  files = [ROOT / 'configs' / 'base.py', *(ROOT / 'irepa_jax').rglob('*.py')]
  text = '\n'.join(p.read_text() for p in files[1:])
  unread = [k for k in base.get_config() if not re.search(rf'\.{k}\b', text)]
  assert not unread


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_a_file_begins_with_the_command_that_runs_it(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert f'python -m irepa_jax.main --config=configs/{name}.py' in text


@pytest.mark.parametrize('name', FILES)
def test_configs_import_nothing_but_configs(name):
  tree = ast.parse((ROOT / 'configs' / f'{name}.py').read_text())
  found = {
      n.module if isinstance(n, ast.ImportFrom) else n.names[0].name
      for n in ast.walk(tree)
      if isinstance(n, ast.Import | ast.ImportFrom)
  }
  assert found <= {'configs', 'ml_collections', 'typing'}


def test_configs_load_without_jax():
  names = ', '.join(FILES)
  code = f'import sys\nfrom configs import {names}\nassert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_field_says_whether_a_run_may_go_on_with_another_value(name):
  assert set(get(name).keys()) == set(base.FIELDS)
  assert {field.free for field in base.FIELDS.values()} == {True, False}


def test_checks_are_of_fields():
  assert {*check.CHOICES, *check.AT_LEAST} <= set(base.FIELDS)


REPA_E = {
    'f8d4': ('sd-vae-f8d4', 'XL/2', 683_242_512, 83_653_863),
    'f16d32_in': ('vae-f16d32', 'XL/1', 683_279_392, 69_836_067),
    'f16d32_va': ('vae-f16d32', 'XL/1', 683_279_392, 69_836_067),
}


@pytest.mark.parametrize('vae', REPA_E)
def test_repa_e_has_the_published_numbers_of_parameters(vae):
  autoencoder, model, count, of_vae = REPA_E[vae]
  config, state = get('repa_e_xl', f'repa_{vae}'), None
  assert (config.autoencoder, config.model) == (autoencoder, f'SiT-{model}')
  state = state_of('repa_e_xl', f'repa_{vae}')
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  params = state.params
  assert size((params['model'], params['projector'])) == count
  assert size(params['vae']) == of_vae
  assert size(params['discriminator']) == 2_765_633


def test_repa_e_presets_say_what_is_released():
  released = get('repa_e_b', 'repa_released')
  assert released.train_positions and released.discriminator_groups == 8
  assert released.preset == 'repa' and released.align_coefficient == '0.5'
  ours = get('repa_e_b', 'repa')
  assert not ours.train_positions and ours.discriminator_groups == 1
  assert get('repa_e_b', 'irepa_half_f8d4').align_coefficient == '0.5'
  weights = dict(
      vae_align_coefficient=1.5, kl_weight=1e-6, perceptual_weight=1.0,
      adversarial_weight=0.1, discriminator_start=0, bn_momentum=0.1,
      vae_lr=1e-4, discriminator_lr=1e-4, lr=1e-4, clip=1.0,
  )  # fmt: skip
  assert not {k: ours[k] for k, v in weights.items() if ours[k] != v}
