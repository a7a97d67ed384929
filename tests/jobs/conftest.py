"""A finished run of the quickstart, two steps long, for the tools."""

import pytest

from configs import quickstart
from irepa_jax.jobs import train


@pytest.fixture(scope='session')
def run_directory(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  config = quickstart.get_config('irepa')
  config.update(
      steps=2, log_every=1, checkpoint_every=1, eval_every=0, sample_every=0,
      sample_steps=3, ema=(0.5, 0.9), batch_size=16, watchdog_s=0,
  )  # fmt: skip
  assert train.run(config, str(workdir)) == 0
  return workdir
