"""The benchmark of the metrics counts right; how fast it is, is not tested."""

import pytest

from irepa_jax.tools.benchmarks import metrics as benchmark_metrics


def test_figures_of_a_small_study():
  figures = benchmark_metrics.benchmark(images=5, side=8, width=4, batch_size=2)
  assert (figures['images'], figures['tokens']) == (5, 64)
  assert figures['study_hours'] == pytest.approx(
      27 * 2500 / figures['images_per_s'] / 3600, abs=1e-3
  )
  assert 0 < figures['peak_before_mib'] <= figures['peak_mib']
  assert figures['tokens_of_an_encoder_mib'] == round(2500 * 64 * 4 * 4 / 2**20, 1)
