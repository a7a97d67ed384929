"""Runs on pixels: as exact as those on latents, dropout and flips included."""

import signal

import numpy as np
import pytest
import real_runs

from configs import quickstart
from configs import quickstart_jit
from irepa_jax import build
from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.checkpoints import manager
from irepa_jax.data import pipeline
from irepa_jax.distributed import sharding
from irepa_jax.jobs import prepare
from irepa_jax.jobs import run_tokens
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import train

STEPS = 10
# Dropout in the middle half, flips, a warm-up of two epochs of six steps.
RECIPE = dict(
    recipe='quickstart_jit',
    proj_dropout=0.2,
    flips=True,
    warmup_epochs=2.0,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('digits') / 'data'
  return real_runs.data_set(folder, autoencoder='pixels')


@pytest.fixture(scope='module')
def straight(tmp_path_factory, data):
  """The run that nothing happens to."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  real_runs.train(workdir, data=data, steps=STEPS, **RECIPE)
  return workdir


def leaves(workdir, part):
  tree, _ = manager.restore_item(workdir / 'checkpoints', part, step=STEPS)
  found = {}

  def walk(path, node):
    if isinstance(node, dict | list | tuple):
      entries = node.items() if isinstance(node, dict) else enumerate(node)
      for key, value in entries:
        walk(f'{path}/{key}', value)
    elif node is not None:
      found[path] = np.asarray(node).tobytes()

  walk('', tree)
  return found


def test_a_killed_run_ends_as_one_that_is_not(straight, data, tmp_path):
  workdir = tmp_path / 'run'
  with real_runs.Started(workdir, data=data, steps=STEPS, **RECIPE) as run:
    run.wait_for_step(6)
    run.send(signal.SIGKILL)
    assert run.codes() == [-signal.SIGKILL]
  real_runs.train(workdir, data=data, steps=STEPS, **RECIPE)
  assert real_runs.losses(workdir) == real_runs.losses(straight)
  for part in ('params', 'opt_state', 'ema'):
    one, other = leaves(workdir, part), leaves(straight, part)
    assert len(one) > 70 and one == other


def test_two_processes_see_the_same_rows_masks_and_flips(
    straight, data, tmp_path
):
  workdir = tmp_path / 'run'
  real_runs.train(workdir, data=data, processes=2, steps=4, **RECIPE)
  seen, wanted = real_runs.losses(workdir), real_runs.losses(straight)
  assert sorted(seen) == [1, 2, 3, 4]
  for step, values in seen.items():
    for name, value in values.items():
      # Devices are the same eight; the sums over them in another order.
      np.testing.assert_allclose(
          value, wanted[step][name], rtol=1e-6, atol=1e-6, err_msg=name
      )


def test_tokens_of_a_run_from_its_images(straight):
  run, mesh = saved_run.open_(straight), sharding.make_mesh()
  pictures = inputs.open_pictures(run.data, 16, 8)
  (batch,) = inputs.batches(pictures, 8)
  tokens = []
  for block in (2, 4):  # before the class tokens joined, and after
    _, load = run_tokens.candidate(run, mesh, pictures, block, 0.5)
    tokens.append(np.asarray(load().encode(batch)))
    assert tokens[-1].shape == (8, 16, 64)
  assert not np.allclose(*tokens, rtol=1e-5)


def test_a_data_set_of_pixels_holds_images_alone(data):
  dataset = pipeline.load(data)
  assert dataset.manifest.autoencoder == 'none'
  assert set(dataset.example(0)) == {'label', 'image'}
  flipped = dataset.example(0, flip=True)['image']
  np.testing.assert_array_equal(
      flipped, dataset.example(0)['image'][:, ::-1]
  )
  dataset.close()


# What does not fit together ---------------------------------------------------


def check(config, data, workdir):
  config.update(data=str(data), batch_size=16)
  return train.run(config, str(workdir), check_only=True)


def test_latents_beside_the_images_do_not_matter(tmp_path):
  """Mirror images of pixels need no records of their own."""
  data = real_runs.data_set(tmp_path / 'haar')
  config = quickstart_jit.get_config()
  config.flips = True
  assert check(config, data, tmp_path / 'run') == 0


def test_data_without_images_is_refused(tmp_path):
  data = real_runs.data_set(tmp_path / 'none', image_format='none')
  with pytest.raises(errors.DataError, match='hold no images.*jpeg or png'):
    check(quickstart_jit.get_config('none'), data, tmp_path / 'run')


def test_images_alone_are_refused_for_latents(data, tmp_path):
  with pytest.raises(errors.DataError, match='no latents.*autoencoder=pixels'):
    check(quickstart.get_config(), data, tmp_path / 'run')


def test_pixels_without_images_are_not_prepared(tmp_path):
  with pytest.raises(errors.UsageError, match='keeps nothing'):
    prepare.prepare(
        'digits', tmp_path, autoencoder='pixels', image_format='none'
    )


def test_patches_have_to_fill_the_image():
  config = quickstart_jit.get_config()
  config.image_size = 18
  with pytest.raises(errors.UsageError, match='divisible by 4.*image_size=18'):
    build.experiment(config)


def test_a_model_without_dropout_refuses_it():
  config = quickstart.get_config()
  config.proj_dropout = 0.2
  with pytest.raises(errors.UsageError, match='proj_dropout is 0.2; SiT-T/2'):
    build.experiment(config)


def test_a_run_on_pixels_does_not_go_on_as_one_on_latents(
    straight, data, tmp_path
):
  with pytest.raises(errors.CheckpointError, match='autoencoder.*pixels.*haar'):
    train.run(quickstart.get_config(), str(straight))


@pytest.mark.parametrize('trained', ['haar', 'pixels'])
def test_a_checkpoint_of_another_autoencoder_is_not_sampled(trained):
  config = {'haar': quickstart_jit, 'pixels': quickstart}[trained].get_config()
  run = saved_run.SavedRun('run', config, build.experiment(config))
  meta = {'autoencoder': trained, 'autoencoder_sha256': ''}
  with pytest.raises(
      errors.CheckpointError, match=f'trained on {trained}, config.json says'
  ):
    saved_run.load_decoder(run, None, meta)
