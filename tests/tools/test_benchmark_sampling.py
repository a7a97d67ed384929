"""The benchmark of samplers runs; how fast they are is not tested."""

import pytest

from configs import quickstart
from irepa_jax import errors
from irepa_jax.tools.benchmarks import sampling

SETTINGS = dict(
    patch=2, width=32, depth=2, heads=2, size=8, channels=4, num_classes=10,
    align_depth=1, target=1,
)  # fmt: skip


def config(**fields):
  found = quickstart.get_config('irepa')
  found.update({'mesh_data': 1, 'allow_subset': True, 'sample_steps': 50})
  found.update({'guidance': 2.0, 'guidance_high': 0.5, **fields})
  return found


def test_images_per_second_are_those_of_all_steps():
  found = sampling.benchmark(config(), batch_size=2, steps=2, repeats=1)
  expected = 2 / (50 * found['step_ms'] / 1e3)
  assert found['img_per_s'] == pytest.approx(expected, rel=0.01)
  assert found['guided_share'] == 0.5
  assert sampling.guided_share(config(guidance=1.0)) == 0


def test_only_a_like_sampler_is_compared():
  with pytest.raises(errors.UsageError, match='sampler=euler; it is heun'):
    sampling.benchmark(config(sampler='heun'), against='torch')


def test_the_yardstick_is_guided_inside_the_interval():
  torch = pytest.importorskip('torch')
  from irepa_jax.tools.benchmarks import pytorch

  def sample(scale, interval):
    settings = dict(dtype='float32', steps=4, scale=scale, interval=interval)
    return pytorch.make_sampler(SETTINGS, 2, **settings)()

  torch.compiler.set_stance('force_eager')  # compiling takes a minute
  plain, never, high, whole = (
      sample(*case)
      for case in ((1, (0, 1)), (2, (0.6, 0.7)), (2, (0.7, 1)), (2, (0, 1)))
  )
  torch.compiler.set_stance('default')
  assert plain.shape == (2, 4, 8, 8) and plain.isfinite().all()
  assert (plain == never).all()
  assert (plain != high).any() and (high != whole).any()
