"""Official checkpoints of REPA-E in and out."""

import jax
import numpy as np
import pytest
import repa_e

from configs import quickstart_repa_e
from irepa_jax import build
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.jobs import official
from irepa_jax.jobs import official_end_to_end
from irepa_jax.jobs import setup
from irepa_jax.jobs import train
from irepa_jax.weights import files as weight_files

pytestmark = pytest.mark.usefixtures('fast_compile')


def experiment(**changes):
  """A tiny run whose images are large enough for the discriminator."""
  config = quickstart_repa_e.get_config('irepa')
  config.update(
      image_size=32, adversarial_weight=0.1, projector='mlp', batch_size=16,
      **changes,
  )  # fmt: skip
  return config, build.experiment(config)


@pytest.fixture(scope='module')
def content():
  """An official checkpoint with random weights, statistics and moments."""
  config, built = experiment()
  shapes = jax.eval_shape(
      lambda: setup.init_state(built, config, jax.random.key(0))
  )
  draw = np.random.default_rng(0)
  random = lambda x: (
      draw.random(x.shape, np.float32)
      if x.dtype == np.float32
      else np.full(x.shape, 7, x.dtype)
  )
  state = jax.tree.map(random, shapes)
  return official_end_to_end.from_state(
      built, config, state, ema=0, args={'model': config.model}
  )


def equal(one, other, path=''):
  assert type(one) is type(other) or np.ndim(one) == np.ndim(other), path
  if isinstance(one, dict):
    assert list(one) == list(other), path
    for name in one:
      equal(one[name], other[name], f'{path}/{name}')
  else:
    np.testing.assert_array_equal(one, other, err_msg=path)


def test_import_then_export_is_the_identity(content, tmp_path):
  config, _ = experiment()
  weight_files.write_torch(tmp_path / 'a.pt', content)
  official.import_(tmp_path / 'a.pt', config, str(tmp_path / 'run'))
  official.export(str(tmp_path / 'run'), tmp_path / 'b.pt')
  back = weight_files.read(tmp_path / 'b.pt')
  for section in content.keys() - {'args'}:
    equal(content[section], back[section], section)
  sections = ('model', 'ema', 'vae', 'discriminator')
  optimisers = ('opt', 'opt_vae', 'opt_disc')
  assert set(back) == {*sections, *optimisers, 'args', 'steps'}


def test_keys_stand_in_the_order_of_the_official_modules(content):
  stored = repa_e.golden('repa')
  for section, name in (('sit_sd', 'model'), ('vae_sd', 'vae'), ('disc_sd', 'discriminator')):
    names = [k.removeprefix(f'{section}/') for k in stored if k.startswith(section)]
    shuffled = dict.fromkeys(sorted(names, key=lambda n: n[::-1]))
    assert list(official_end_to_end.in_order(shuffled)) == names
    assert {k.split('.')[0] for k in content[name]} == {
        k.split('.')[0] for k in names
    }
  # logvar is the first parameter of the losses, LPIPS the last 31.
  opt = content['opt_disc']
  assert list(opt['state']) == list(range(1, 14))
  assert opt['param_groups'][0]['params'] == list(range(45))


def test_torch_takes_the_optimisers_up(content, tmp_path):
  torch = pytest.importorskip('torch')
  weight_files.write_torch(tmp_path / 'a.pt', content)
  read = torch.load(tmp_path / 'a.pt', weights_only=True)
  buffers = ('running_', 'num_batches')
  for section, name in (('opt', 'model'), ('opt_vae', 'vae')):
    weights = [
        torch.nn.Parameter(v)
        for k, v in read[name].items()
        if not any(b in k for b in buffers)
    ]
    optimiser = torch.optim.AdamW(weights)
    optimiser.load_state_dict(read[section])
    for weight in weights:
      weight.grad = torch.zeros_like(weight)
    optimiser.step()
    assert float(optimiser.state[weights[0]]['step']) == 8


def test_an_imported_run_trains_on(content, tmp_path):
  config, _ = experiment(
      steps=8, log_every=1, eval_every=0, sample_every=0, watchdog_s=0,
      diffusion_start=0, mesh_data=1, allow_subset=True,
  )  # fmt: skip
  weight_files.write_torch(tmp_path / 'a.pt', content)
  workdir = str(tmp_path / 'run')
  official.import_(tmp_path / 'a.pt', config, workdir)
  assert train.run(config, workdir) == 0
  assert manager.steps(f'{workdir}/checkpoints')[-1] == 8


@pytest.mark.parametrize(
    'absent, line',
    [
        ('vae', 'the file lacks vae'),
        ('discriminator', 'no discriminator: set config.adversarial_weight=0'),
    ],
)
def test_a_file_without_a_part_is_refused_in_one_line(content, absent, line):
  config, built = experiment()
  part = {k: v for k, v in content.items() if k != absent}
  with pytest.raises(errors.DataError, match=line):
    official_end_to_end.to_state(built, config, part)


def test_moments_that_are_not_there_are_told(content):
  config, built = experiment()
  part = {k: v for k, v in content.items() if k != 'opt_vae'}
  _, missing = official_end_to_end.to_state(built, config, part)
  assert missing == ['the moments of AdamW of the vae, which start from zero']
