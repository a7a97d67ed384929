"""Official checkpoints of JiT in and out."""

import jax
import numpy as np
import pytest

from configs import quickstart
from configs import quickstart_jit
from irepa_jax import build
from irepa_jax import errors
from irepa_jax.jobs import official
from irepa_jax.jobs import sample
from irepa_jax.jobs import setup
from irepa_jax.jobs import train
from irepa_jax.weights import convert
from irepa_jax.weights import files

STEPS = 7


def experiment():
  config = quickstart_jit.get_config('irepa')
  config.update(
      steps=STEPS + 1, log_every=1, eval_every=0, sample_every=0,
      batch_size=16, watchdog_s=0, ema=(0.9999, 0.9996), sample_steps=2,
  )  # fmt: skip
  return config, build.experiment(config)


def official_file():
  """A checkpoint as the released trainer saves it, with random weights."""
  _, built = experiment()
  params = setup.init_params(built, jax.random.key(3))
  model = convert.to_official(built.model, built.projector, params)
  draw = np.random.default_rng(0)
  random = lambda v: draw.random(v.shape, np.float32)
  # Two groups: first the names without weight decay, both without the table.
  names = [n for n in model if n != 'pos_embed']
  names.sort(key=lambda n: model[n].ndim > 1 and not n.endswith('.bias'))
  named = lambda shift: {f'net.{k}': v + shift for k, v in model.items()}
  state = {
      i: {
          'step': np.float32(STEPS),
          'exp_avg': random(model[name]),
          'exp_avg_sq': random(model[name]),
      }
      for i, name in enumerate(names)
  }
  content = {
      'model': named(0),
      'model_ema1': named(1),
      'model_ema2': named(2),
      'optimizer': {'state': state, 'param_groups': [{'lr': 1e-4}]},
      'epoch': 3,
      'args': {'model': 'JiT-T/4'},
  }
  return content, names


@pytest.fixture(name='file')
def fixture_file(tmp_path):
  content, _ = official_file()
  files.write_torch(tmp_path / 'a.pth', content)
  return tmp_path / 'a.pth'


def test_both_averages_and_the_moments_arrive(file):
  content, names = official_file()
  config, built = experiment()
  state, missing = official.to_state(built, config, files.read(file))
  assert not missing and state.step == STEPS
  for tree, section in zip(
      (state.params, *state.ema),
      ('model', 'model_ema1', 'model_ema2'),
      strict=True,
  ):
    made = convert.to_official(built.model, built.projector, tree)
    assert {f'net.{k}' for k in made} == set(content[section])
    for name, value in made.items():
      np.testing.assert_array_equal(value, content[section][f'net.{name}'])
  adam = state.opt_state[0]
  assert adam.count == STEPS
  for kind, stored in (('mu', 'exp_avg'), ('nu', 'exp_avg_sq')):
    moved = convert.to_official(
        built.model, built.projector, getattr(adam, kind)
    )
    for i, name in enumerate(names):
      wanted = content['optimizer']['state'][i][stored]
      np.testing.assert_array_equal(moved[name], wanted, err_msg=name)
    assert not moved['pos_embed'].any()


def test_a_file_becomes_a_run_that_is_sampled_continued_and_exported(file):
  config, _ = experiment()
  workdir = file.parent / 'run'
  official.import_(file, config, str(workdir))
  content = files.read(file)
  official.export(workdir, file.parent / 'b.pth')
  back = files.read(file.parent / 'b.pth')
  for section in ('model', *official.JIT_AVERAGES):
    assert set(back[section]) == set(content[section])
    for name, value in content[section].items():
      np.testing.assert_array_equal(back[section][name], value)
  official.export(workdir, file.parent / 'b.safetensors', ema=1)
  flat = files.read(file.parent / 'b.safetensors')
  np.testing.assert_array_equal(
      flat['net.pos_embed'], content['model_ema2']['net.pos_embed']
  )
  assert sample.sample(str(workdir), count=8, batch_size=8, grid=8) == 0
  with np.load(workdir / 'samples' / f'{STEPS:07d}-8.npz') as made:
    assert made['arr_0'].shape == (8, 16, 16, 3)
  assert train.run(config, str(workdir)) == 0


def test_epochs_are_those_of_imagenet_without_an_optimizer():
  content, _ = official_file()
  content.pop('optimizer')
  assert official.sections(content, 1024).steps == 3 * 1251


def test_another_kind_of_model_is_named(file):
  config = quickstart.get_config('irepa')
  with pytest.raises(
      errors.DataError, match=r'looks like JiT-T/4 \(4 blocks.*SiT-T/2'
  ):
    official.to_state(build.experiment(config), config, files.read(file))
