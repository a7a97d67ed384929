"""A run of REPA-E through the commands: kills, processes, samples, second stage."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
import real_runs

from configs import quickstart_repa_e
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.distributed import sharding
from irepa_jax.jobs import prepare
from irepa_jax.jobs import sample
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import train
from irepa_jax.jobs import vae_files
from irepa_jax.models import autoencoders
from irepa_jax.weights import files

STEPS = 8
SETTINGS = dict(
    recipe='quickstart_repa_e',
    diffusion_start=2,
    steps=STEPS,
    checkpoint_every=2,
    keep=8,
    scan_layers=True,
)
COMPUTED = (
    *real_runs.COMPUTED, 'vae/l1', 'vae/kl', 'vae/alignment', 'vae/grad_norm',
    'latents/std',
)  # fmt: skip


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The run that nothing happens to."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  real_runs.train(workdir, **SETTINGS)
  return workdir


def state(workdir, step):
  """Returns the arrays of a checkpoint by path."""
  found = {}
  for part in ('params', 'opt_state', 'ema', 'model_state'):
    tree, _ = manager.restore_item(workdir / 'checkpoints', part, step=step)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[part + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def test_a_run_that_is_killed_ends_as_one_that_is_not(straight, tmp_path):
  workdir = tmp_path / 'run'
  with real_runs.Started(workdir, **SETTINGS) as run:
    run.wait_for_step(5)
    run.send(signal.SIGKILL)
    assert run.codes() == [-signal.SIGKILL]
  real_runs.train(workdir, **SETTINGS)
  one, other = state(workdir, STEPS), state(straight, STEPS)
  assert one.keys() == other.keys() and len(one) > 400
  assert all(one[k].tobytes() == other[k].tobytes() for k in one)
  seen = real_runs.losses(workdir, COMPUTED)
  assert seen == real_runs.losses(straight, COMPUTED)


def test_two_processes_continue_the_run_of_one(straight, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(straight, workdir)
  for step in real_runs.steps(workdir):
    if step > 4:
      shutil.rmtree(workdir / 'checkpoints' / str(step))
  real_runs.train(workdir, processes=2, **SETTINGS | dict(steps=6))
  seen, wanted = (
      real_runs.losses(w, COMPUTED) for w in (workdir, straight)
  )
  for step in (5, 6):
    for name, value in seen[step].items():
      # The same eight devices; sums over them in another order.
      np.testing.assert_allclose(
          value, wanted[step][name], rtol=1e-5, atol=1e-5, err_msg=name
      )
  for name, value in state(workdir, 6).items():
    if 'model_state' in name:
      expected = state(straight, 6)[name]
      np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_samples_come_through_the_autoencoder_of_the_checkpoint(straight):
  run = saved_run.open_(str(straight))
  mesh = sharding.make_mesh()
  _, meta = saved_run.load(run, mesh)
  stored, _ = manager.restore_item(run.checkpoints, 'ema/0/bn', step=STEPS)
  np.testing.assert_allclose(meta['bias'], stored['mean'], rtol=1e-6)
  np.testing.assert_allclose(meta['scale'], stored['var'] ** -0.5, rtol=1e-6)
  vae, _ = manager.restore_item(run.checkpoints, 'params/vae', step=STEPS)
  loaded = sample.load(run, mesh)
  jax.tree.map(np.testing.assert_array_equal, loaded.params['decoder'], vae)
  out = straight / 'images'
  status = sample.sample(
      str(straight), out=str(out), count=8, batch_size=8, sample_steps=2
  )
  assert status == 0
  assert np.load(f'{out}.npz')['arr_0'].shape == (8, 16, 16, 3)


def test_the_second_stage_trains_on_latents_of_what_was_learned(
    straight, tmp_path
):
  folder, data = tmp_path / 'vae', tmp_path / 'data'
  vae_files.export(str(straight), str(folder))
  vae_files.export(str(straight), str(tmp_path / 'vae.pt'))
  codec = autoencoders.create('vae-digits')
  one, other = codec.load(str(folder)), codec.load(str(tmp_path / 'vae.pt'))
  jax.tree.map(np.testing.assert_array_equal, one, other)
  layout = json.loads((folder / 'config.json').read_text())
  assert layout['block_out_channels'] == [32, 32]
  statistics = str(tmp_path / 'vae-latents-stats.pt')
  manifest = prepare.prepare(
      'digits', data, image_size=16, image_format='png', max_images=64,
      autoencoder='vae-digits', weights=str(folder), statistics=statistics,
      say=lambda line: None,
  )  # fmt: skip
  assert manifest.scale == autoencoders.read_statistics(statistics)[1]
  config = quickstart_repa_e.get_config('irepa')
  config.update(
      end_to_end=False, data=str(data), autoencoder_weights=str(folder),
      steps=1, batch_size=16, eval_every=0, sample_every=0, watchdog_s=0,
  )  # fmt: skip
  assert train.run(config, str(tmp_path / 'run')) == 0
  # And end to end again, from these weights and the statistics of the set.
  config.update(end_to_end=True, diffusion_start=0, steps=1, vae_lr=1e-9)
  assert train.run(config, str(tmp_path / 'again')) == 0
  bn, _ = manager.restore_item(tmp_path / 'again/checkpoints', 'ema/0/bn')
  np.testing.assert_allclose(bn['mean'], manifest.latent_mean, atol=0.05)


# What is refused, in one line -----------------------------------------------------


def config(**changes):
  made = quickstart_repa_e.get_config('irepa')
  made.update(eval_every=0, sample_every=0, watchdog_s=0, **changes)
  return made


@pytest.mark.parametrize(
    'changes, line',
    [
        (dict(autoencoder='haar'), "'haar', which has no weights to train"),
        (dict(adversarial_weight=0.1), 'the discriminator needs 24 pixels'),
        (
            dict(perceptual_weight=1.0, lpips_weights='/none/vgg.pth,/none/b'),
            "weights '/none/vgg.pth': no such file",
        ),
    ],
)
def test_what_cannot_start_is_refused_in_one_line(changes, line, tmp_path):
  with pytest.raises((errors.UsageError, errors.DataError)) as caught:
    train.run(config(**changes), str(tmp_path / 'run'), check_only=True)
  assert line in str(caught.value) and '\n' not in str(caught.value)


def test_weights_without_statistics_are_refused(tmp_path):
  codec = autoencoders.create('vae-digits')
  entries = {
      k: np.zeros(s, np.float32)
      for k, s in vae_files.convert.torch_shapes(codec.module).items()
  }
  path = tmp_path / 'vae.pt'
  files.write_torch(path, entries)
  with pytest.raises(errors.UsageError, match='set config.vae_statistics'):
    train.run(
        config(autoencoder_weights=str(path)), str(tmp_path / 'run')
    )


def test_a_run_that_has_not_trained_its_autoencoder_has_none_to_export(
    run_directory, tmp_path
):
  with pytest.raises(errors.UsageError, match='has not trained its autoenc'):
    vae_files.export(str(run_directory), str(tmp_path / 'vae'))
