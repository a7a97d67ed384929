"""Runs of MeanFlow: continued, sampled in some steps, official ones taken over."""

import json

from flax.training import checkpoints
from flax.training import train_state
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import quickstart_meanflow
from irepa_jax import build
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.distributed import sharding
from irepa_jax.jobs import official
from irepa_jax.jobs import sample
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup
from irepa_jax.jobs import train
from irepa_jax.weights import convert
from irepa_jax.weights import files

OURS = dict(
    steps=4, log_every=1, checkpoint_every=2, eval_every=0, sample_every=0,
    batch_size=32, watchdog_s=0, lr=0.02, ema=(0.5,),
)  # fmt: skip
# The network of the oracles: two blocks, 48 wide, latents 8x8x4, 10 classes.
STATISTICS = {
    'latents_bias': np.zeros((1, 4, 1, 1), np.float32),
    'latents_scale': np.ones((1, 4, 1, 1), np.float32),
}
TINY = dict(depth=2, width=48, heads=3)


def config_of(**changes):
  config = quickstart_meanflow.get_config('none')
  config.update(OURS | dict(align_depth=1) | changes)
  return config


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(models.SIZES, 'T', TINY)


@pytest.fixture(scope='module')
def run_directory(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('mean_flow') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.SIZES, 'T', TINY)
    assert train.run(config_of(), workdir) == 0
  return workdir


def computed(workdir):
  """Returns what each step has computed, by step."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  names = ('loss', 'grad_norm', 'error', 'velocity_error', 'derivative')
  return {
      line['step']: {n: line[n] for n in names} for line in lines if 'loss' in line
  }


def test_a_continued_run_is_the_same_run(run_directory, tmp_path):
  workdir = tmp_path / 'run'
  assert train.run(config_of(steps=2), workdir) == 0
  assert train.run(config_of(), workdir) == 0
  assert computed(workdir) == computed(run_directory)
  assert set(computed(workdir)) == {1, 2, 3, 4}


def images(workdir, out, **settings):
  sample.sample(
      workdir, **({'out': str(out), 'count': 16, 'batch_size': 16} | settings)
  )
  with np.load(f'{out}.npz') as file:
    return file['arr_0'].astype(int)


def test_samples_in_some_steps(run_directory, tmp_path):
  one, two, guided = (
      images(run_directory, tmp_path / str(i), **settings)
      for i, settings in enumerate(
          ({}, {'sample_steps': 2}, {'guidance': 3.0})
      )
  )
  assert json.loads((tmp_path / '0.json').read_text())['sample_steps'] == 1
  assert np.abs(one - two).max() > 1 and np.abs(one - guided).max() > 1


@pytest.mark.parametrize(
    'objective', ['flow_matching', 'mean_flow', 'improved_mean_flow']
)
def test_a_sample_is_denormalised_whatever_the_guidance(objective):
  built = build.experiment(config_of(objective=objective))
  params = jax.tree.map(
      lambda s: np.zeros(s.shape, s.dtype), convert.param_shapes(built.model)
  )
  config = config_of(objective=objective, guidance=3.0)
  bias, scale = (0.1, 0.2, 0.3, 0.4), (5.0, 6.0, 7.0, 8.0)
  noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4))
  noise = noise.astype(np.float32)
  found = jax.jit(build.make_sample(built, config, bias, scale))(
      {'model': params, 'decoder': {}},
      jnp.asarray(noise),
      jnp.zeros(2, jnp.int32),
      None,
  )  # zeros predict no velocity, so that the noise is the sample
  wanted = noise / np.float32(scale) + np.float32(bias)
  wanted = built.autoencoder.decode({}, wanted)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_devices_do_not_matter(run_directory):
  run = saved_run.open_(run_directory, sample_steps=2)
  made = []
  for count in (8, 1):
    mesh = sharding.make_mesh(count, allow_subset=True)
    params, meta = saved_run.load(run, mesh)
    decoder = saved_run.load_decoder(run, mesh, meta)
    weights = setup.sampling_weights(run.built, params, decoder)
    render = saved_run.renderer(run, meta, mesh)
    part, finite = render(weights, np.arange(16, dtype=np.int32))
    assert finite
    made.append(np.asarray(part.images).astype(int))
  # Rows of a batch of another size round differently: one grey level at most.
  assert np.abs(made[0] - made[1]).max() <= 1


def test_a_sampler_for_velocities_at_one_time_is_refused(run_directory):
  with pytest.raises(errors.UsageError, match="sampler is 'heun'; .*'euler'"):
    saved_run.open_(run_directory, sampler='heun')


class OfficialState(train_state.TrainState):
  ema_params: dict


@pytest.fixture
def released(tmp_path):
  """A checkpoint as the official trainer writes it, of random weights."""
  flat = golden_files.subset(golden_files.load('meanflow_net'), 'sd')
  params = convert.unflatten({tuple(k.split('/')): v for k, v in flat.items()})
  state = OfficialState.create(
      apply_fn=None,
      params=jax.tree.map(lambda x: x + 1, params),
      tx=optax.adamw(1e-4, b2=0.95),
      ema_params=params,
  )
  return checkpoints.save_checkpoint(tmp_path.absolute(), state, 7), params


def test_an_official_checkpoint_comes_in_and_goes_out(released, tmp_path):
  path, params = released
  workdir = str(tmp_path / 'run')
  files.write_torch(tmp_path / 'stats.pt', STATISTICS)
  official.import_(
      path, config_of(), workdir, latent_statistics=tmp_path / 'stats.pt'
  )
  run = saved_run.open_(workdir)
  found, _ = saved_run.load(run, sharding.make_mesh(1, allow_subset=True))
  oracle = golden_files.load('meanflow_net')
  u, _ = build.network(run.built.model, found['model'])(
      *(oracle[k] for k in ('x', 't', 'y', 'h'))
  )
  np.testing.assert_allclose(u, oracle['u'], atol=2e-5)
  assert images(workdir, tmp_path / 'a').shape == (16, 16, 16, 3)
  official.export(workdir, tmp_path / 'b.pt')
  exported = files.read(tmp_path / 'b.pt')['ema']
  table = oracle['pos_embed']
  np.testing.assert_array_equal(exported.pop('pos_embed')[0], table)
  wanted = params['net']['h_embedder']['mlp']['layers_2']['_flax_linear']
  np.testing.assert_array_equal(
      exported['h_embedder.mlp.2.weight'], wanted['kernel'].T
  )


def random_entries(model):
  """Returns a state dict of random numbers."""
  draw = np.random.default_rng(0).random
  shapes = convert.torch_shapes(model)
  return {name: draw(shape, np.float32) for name, shape in shapes.items()}


def test_a_pytorch_copy_calls_the_embedding_of_h_after_r():
  model = build.experiment(config_of()).model
  entries = random_entries(model)
  rename = lambda name: name.replace('h_embedder', 'r_embedder')
  renamed = {rename(name): value for name, value in entries.items()}
  assert renamed.keys() != entries.keys()
  params = convert.from_official(model, None, renamed)
  found = convert.to_official(model, None, params)
  jax.tree.map(np.testing.assert_array_equal, found, entries)


def test_a_network_of_one_time_is_refused():
  model = build.experiment(config_of()).model
  entries = random_entries(model.clone(durations=False))
  with pytest.raises(errors.DataError, match=r'4 missing \(h_embedder'):
    convert.from_official(model, None, entries)
