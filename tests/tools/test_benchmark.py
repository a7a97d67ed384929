"""The benchmark runs and counts; how fast it is, is not tested."""

import pytest

from configs import quickstart
from irepa_jax import errors
from irepa_jax.tools.benchmarks import step as benchmark

# Fields of pytorch.SiT.
SETTINGS = dict(
    patch=2, width=32, depth=2, heads=2, size=8, channels=4, num_classes=10,
    align_depth=1, target=16,
)  # fmt: skip


def config(**fields):
  found = quickstart.get_config('irepa')
  found.update({'batch_size': 8, 'mesh_data': 1, 'allow_subset': True} | fields)
  return found


def test_figures_of_a_step():
  figures = benchmark.benchmark(config(), steps=2)
  assert figures['img_per_s'] == pytest.approx(
      8e3 / figures['step_ms'], rel=0.01
  )
  assert set(figures['shares']) == {
      'encoder', 'forward_backward', 'optimiser_and_ema'
  }  # fmt: skip
  assert figures['mfu'] > 0 and figures['temporaries_mib'] >= 0


def test_the_yardstick_computes_the_same_kind_of_loss():
  torch = pytest.importorskip('torch')
  from irepa_jax.tools.benchmarks import pytorch

  torch.compiler.set_stance('force_eager')  # compiling takes a minute
  step = pytorch.make_step(SETTINGS, 4, dtype='float32')
  losses = [step() for _ in range(3)]
  torch.compiler.set_stance('default')
  # Unit latents and noise: |v|^2 is about 2, and the cosine starts near 0.
  assert all(1 < loss < 4 for loss in losses)


def test_the_yardstick_runs_in_a_process_of_its_own(monkeypatch):
  pytest.importorskip('torch')
  from irepa_jax.tools.benchmarks import pytorch

  monkeypatch.setenv('TORCHDYNAMO_DISABLE', '1')
  theirs = pytorch.Process(SETTINGS, 4, dtype='float32')
  seconds = [theirs.once() for _ in range(2)]
  assert all(0 < s < 60 for s in seconds)


def test_only_a_like_step_is_compared():
  with pytest.raises(errors.UsageError, match='features=cached'):
    benchmark.benchmark(config(), against='torch')
