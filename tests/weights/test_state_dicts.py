"""What a weight file holds, known before it is indexed."""

import jax
import numpy as np
import pytest

from configs import quickstart
from irepa_jax import build
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.jobs import official
from irepa_jax.jobs import setup
from irepa_jax.models import autoencoders
from irepa_jax.models import inception_weights
from irepa_jax.weights import convert
from irepa_jax.weights import files
from irepa_jax.weights import listing
from irepa_jax.weights import state_dicts

TENSOR = np.zeros(3, np.float32)
STRANGE = {
    'list': [TENSOR, {'a': TENSOR}],
    'tensor': TENSOR,
    'none': None,
    'number': 7,
    'text': 'weights',
    'empty': {},
    'numbered': {0: TENSOR},
    'values': {'a.weight': 'x'},
    'nested': {'net': {'a.weight': TENSOR}},
    'resnet': {'conv1.weight': np.zeros((8, 3, 7, 7), np.float32)},
    'ragged': {'model': {'a': [TENSOR, [1]]}},
    'model_none': {'model': None, 'ema': None},
    'model_list': {'model': [TENSOR], 'ema': None},
    'model_tensor': {'model': TENSOR, 'ema': TENSOR},
    'state_dict_none': {'state_dict': None},
    'other_sit': {'x_embedder.proj.weight': TENSOR, 'blocks.0.a': TENSOR},
}


@pytest.fixture(scope='module')
def sit():
  config = quickstart.get_config('irepa')
  built = build.experiment(config)
  params = setup.init_params(built, jax.random.key(3))
  model = convert.to_official(built.model, built.projector, params)
  return config, built, {k: np.asarray(v) for k, v in model.items()}


def load_sit(content):
  config = quickstart.get_config('irepa')
  official.double_output(official.sections(content).model)
  official.to_state(build.experiment(config), config, content)


@pytest.mark.parametrize('name', STRANGE)
@pytest.mark.parametrize(
    'load',
    [
        load_sit,
        models.autoencoder('sd-vae-ft-mse').from_torch,
        inception_weights.from_torch,
        encoders.create('dinov2-vit-b', resolution=224).from_torch,
        encoders.create('clip-vit-L', resolution=224).from_torch,
    ],
    ids=['sit', 'vae', 'inception', 'dinov2', 'clip'],
)
def test_a_file_of_another_kind_is_one_line(load, name):
  with pytest.raises(errors.DataError) as caught:
    load(STRANGE[name])
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', STRANGE)
def test_any_file_can_be_listed(tmp_path, name):
  files.write_torch(tmp_path / 'a.pt', STRANGE[name])
  lines = list(listing.describe(tmp_path / 'a.pt'))
  assert lines[0].startswith(str(tmp_path)) and all('\n' not in s for s in lines)


PREFIXES = ('', 'module.', '_orig_mod.', '_orig_mod.module.', 'module._orig_mod.')


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('other', ['', 'module.'])
def test_wrappers_are_seen_through(sit, prefix, other):
  config, built, model = sit
  under = lambda name: {name + k: v for k, v in model.items()}
  content = {'model': under(prefix), 'ema': under(other), 'steps': 4}
  state, _ = official.to_state(built, config, content)
  assert int(state.step) == 4
  back = convert.to_official(built.model, built.projector, state.params)
  for key, value in model.items():
    np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize('prefix', PREFIXES[1:])
def test_encoders_and_autoencoders_see_through_them_too(prefix):
  small = encoders.create('dinov2-vit-b', resolution=224, depth=1, width=64, heads=1)
  shapes = convert.torch_shapes(small.module)
  arrays = {k: np.ones(s, np.float32) for k, s in shapes.items()}
  arrays['pos_embed'] = np.ones((1, 257, 64), np.float32)
  arrays['mask_token'] = np.ones((1, 64), np.float32)
  small.from_torch({prefix + k: v for k, v in arrays.items()})
  vae = models.autoencoder('sd-vae-ft-mse')
  shapes = convert.torch_shapes(vae.module)
  arrays = {prefix + k: np.zeros(s, np.float32) for k, s in shapes.items()}
  vae.from_torch(arrays)


def test_an_average_of_torch_counts_its_updates(sit):
  model = sit[2]
  average = {'n_averaged': np.int64(3), **{f'module.{k}': v for k, v in model.items()}}
  load_sit({'model': model, 'ema': average})
  twice = {'module.a': TENSOR, 'a': TENSOR}
  with pytest.raises(errors.DataError, match='twice'):
    state_dicts.arrays(twice)


@pytest.mark.parametrize(
    'steps, wanted',
    [(None, 0), (5, 5), (5.0, 5), (np.int64(6), 6), (np.array([7]), 7),
     ('9', None), (-1, None), (0.5, None), ([1, 2], None), (np.nan, None)],
)  # fmt: skip
def test_steps(sit, steps, wanted):
  content = {'model': sit[2], 'ema': None, 'steps': steps}
  if wanted is None:
    with pytest.raises(errors.DataError, match='`steps` is .* whole number'):
      official.sections(content)
  else:
    assert official.sections(content).steps == wanted


def test_without_an_average_the_model_is_it(sit):
  config, built, model = sit
  for content in ({'model': model, 'ema': None}, {'model': model}, model):
    state, missing = official.to_state(built, config, content)
    assert any('moving average' in part for part in missing)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema[0])


@pytest.mark.parametrize(
    'opt, hint',
    [
        ([], '`opt` holds a list of 0'),
        ({'param_groups': []}, '`opt` holds a dict of param_groups'),
        ({'state': [1]}, '`opt` holds a dict of state'),
        ({'state': {10_000: {}}}, 'parameter 10000; the model has 0 to'),
        ({'state': {'blocks.0': {}}}, "parameter 'blocks.0'"),
        ({'state': {0: {'momentum_buffer': TENSOR}}}, 'momentum_buffer for parameter 0'),
        ({'state': {0: None}}, 'nothing .None. for parameter 0'),
        ({'state': {0: {'step': 'a', 'exp_avg': 1, 'exp_avg_sq': 1}}}, 'step of parameter 0'),
        ({'state': {0: {'step': 1, 'exp_avg': TENSOR, 'exp_avg_sq': TENSOR}}}, 'shape'),
    ],
)  # fmt: skip
def test_optimisers_of_other_kinds_are_one_line(sit, opt, hint):
  config, built, model = sit
  content = {'model': model, 'ema': model, 'opt': opt}
  with pytest.raises(errors.DataError, match=hint):
    official.to_state(built, config, content)


@pytest.mark.parametrize('content', [{'state': {}}, None])
def test_an_optimiser_may_not_have_stepped(sit, content):
  config, built, model = sit
  official.to_state(built, config, {'model': model, 'ema': model, 'opt': content})


@pytest.mark.parametrize(
    'bias, scale',
    [
        (np.zeros((1, 4, 1, 1), np.float32), np.ones((1, 4, 1, 1), np.float32)),
        ([0.0] * 4, [1.0] * 4),
        (np.zeros(4), (1, 1, 1, 1)),
    ],
)
def test_statistics_of_any_shape(tmp_path, bias, scale):
  path = tmp_path / 's.pt'
  files.write_torch(path, {'latents_bias': bias, 'latents_scale': scale})
  assert autoencoders.read_statistics(path, 4) == ((0.0,) * 4, (1.0,) * 4)


@pytest.mark.parametrize(
    'content, hint',
    [
        ([TENSOR], 'a list of 1'),
        (TENSOR, 'one array'),
        ({}, 'no latents_bias among nothing'),
        ({'mean': TENSOR, 'std': TENSOR}, 'among mean, std; expected latents_bias'),
        ({'latents_bias': TENSOR}, 'no latents_scale'),
        ({'latents_bias': None, 'latents_scale': TENSOR}, 'latents_bias is nothing'),
        ({'latents_bias': {}, 'latents_scale': TENSOR}, 'latents_bias is a dict'),
        ({'latents_bias': 'x', 'latents_scale': TENSOR}, 'latents_bias is str'),
        ({'latents_bias': TENSOR, 'latents_scale': TENSOR / 0}, 'finite'),
        ({'latents_bias': TENSOR, 'latents_scale': TENSOR}, 'never 0'),
        ({'latents_bias': TENSOR, 'latents_scale': np.ones(4)}, '3 and 4 channels'),
        ({'latents_bias': TENSOR[:2], 'latents_scale': np.ones(2)}, 'not of 3'),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings('ignore')
def test_statistics_of_another_kind_are_one_line(tmp_path, content, hint):
  files.write_torch(tmp_path / 's.pt', content)
  with pytest.raises(errors.DataError, match=hint):
    autoencoders.read_statistics(tmp_path / 's.pt', 3)
