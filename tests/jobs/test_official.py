"""Official checkpoints in and out."""

import jax
import numpy as np
import pytest

from configs import quickstart
from irepa_jax import build
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.jobs import official
from irepa_jax.jobs import setup
from irepa_jax.jobs import train
from irepa_jax.weights import convert
from irepa_jax.weights import files as weight_files
from irepa_jax.weights import listing

STATISTICS = {
    'latents_bias': np.zeros((1, 4, 1, 1), np.float32),
    'latents_scale': np.ones((1, 4, 1, 1), np.float32),
}


def experiment():
  config = quickstart.get_config('irepa')
  return config, build.experiment(config)


def tiny_file():
  """An official checkpoint with random weights and moments of AdamW."""
  config, built = experiment()
  params = setup.init_params(built, jax.random.key(3))
  model = convert.to_official(built.model, built.projector, params)
  draw = np.random.default_rng(0)
  random = lambda v: draw.random(v.shape, np.float32)
  opt = {
      i: {'step': np.float32(5), 'exp_avg': random(v), 'exp_avg_sq': random(v)}
      for i, (name, v) in enumerate(model.items())
      if name != 'pos_embed'
  }
  ema = {k: v + 1 for k, v in model.items()}
  content = {
      'model': model,
      'ema': ema,
      'opt': {'state': opt, 'param_groups': [{'lr': 1e-4}]},
      'args': {'model': config.model},
      'steps': 5,
  }
  return config, built, content


@pytest.fixture(name='files')
def fixture_files(tmp_path):
  _, _, content = tiny_file()
  weight_files.write_torch(tmp_path / 'a.pt', content)
  weight_files.write_torch(tmp_path / 'stats.pt', STATISTICS)
  return tmp_path, content


def test_import_then_export_is_the_identity(files):
  folder, content = files
  config, built = experiment()
  workdir = str(folder / 'run')
  official.import_(
      folder / 'a.pt', config, workdir, latent_statistics=folder / 'stats.pt'
  )
  official.export(workdir, folder / 'b.pt')
  back = weight_files.read(folder / 'b.pt')
  assert back['steps'] == 5
  for section in ('model', 'ema'):
    assert set(back[section]) == set(content[section])
    for name, value in content[section].items():
      np.testing.assert_array_equal(back[section][name], value)
  official.export(workdir, folder / 'b.safetensors')
  flat = weight_files.read(folder / 'b.safetensors')
  np.testing.assert_array_equal(flat['pos_embed'], content['ema']['pos_embed'])
  state, _ = official.to_state(built, config, content)
  mu = next(s.mu for s in state.opt_state[1] if hasattr(s, 'mu'))
  moved = convert.to_official(built.model, built.projector, mu)
  names = list(content['model'])
  for i, entry in content['opt']['state'].items():
    np.testing.assert_array_equal(moved[names[i]], entry['exp_avg'])


def test_an_imported_run_trains_on(files):
  folder, _ = files
  config, _ = experiment()
  config.update(
      steps=6, log_every=1, eval_every=0, sample_every=0, batch_size=16,
      watchdog_s=0,
  )  # fmt: skip
  workdir = str(folder / 'run')
  official.import_(
      folder / 'a.pt', config, workdir, latent_statistics=folder / 'stats.pt'
  )
  assert train.run(config, workdir) == 0
  assert manager.steps(f'{workdir}/checkpoints')[-1] == 6


def test_torch_reads_what_is_exported(files, run_directory):
  torch = pytest.importorskip('torch')
  folder, _ = files
  official.export(run_directory, folder / 'c.pt')
  content = torch.load(folder / 'c.pt', weights_only=True)
  assert content['steps'] == 2
  assert content['model']['blocks.0.attn.qkv.weight'].shape == (192, 64)


def test_a_plain_sit_file_with_twice_the_channels(files):
  folder, content = files
  config, built = experiment()
  plain = {k: v for k, v in content['model'].items() if 'projectors' not in k}
  for name in ('final_layer.linear.weight', 'final_layer.linear.bias'):
    plain[name] = np.concatenate([plain[name]] * 2)
  assert official.double_output(plain)
  wide = built._replace(model=built.model.clone(out_channels=8))
  state, missing = official.to_state(wide, config, plain)
  assert missing == [
      'the moving average, which starts as the model',
      'the projector, which is new',
      'the moments of AdamW, which start from zero',
  ]
  x = np.zeros((1, 8, 8, 4), np.float32)
  out, _ = wide.model.apply(
      {'params': state.params['model']},
      x,
      np.zeros(1, np.float32),
      np.zeros(1, np.int32),
  )
  assert out.shape == x.shape


def test_another_architecture_is_named(files):
  folder, _ = files
  config, _ = experiment()
  config.model = 'SiT-S/2'
  with pytest.raises(errors.DataError, match=r'looks like SiT-T/2 \(4 blocks'):
    official.import_(folder / 'a.pt', config, folder / 'run')
  assert not (folder / 'run' / 'checkpoints').exists()


def test_listing_and_the_table_of_encoders(files):
  folder, _ = files
  text = '\n'.join(listing.describe(folder / 'a.pt'))
  text += '\n'.join(encoders.table_text(['dinov2-vit-b']))
  assert 'blocks.0.attn.qkv.weight  float32[192, 64]' in text
  assert 'facebook/dinov2-base' in text
