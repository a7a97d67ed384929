"""Real runs whose surroundings fail."""

import resource

import pytest
import real_runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return real_runs.data_set(tmp_path_factory.mktemp('digits') / 'data')


def test_a_disk_without_a_byte_left_ends_a_run_by_its_saves(data, tmp_path):
  """Nothing can be written from some step on, standard output included."""
  workdir = tmp_path / 'run'
  settings = dict(steps=400, keep=1, checkpoint_every=8, max_failed_saves=2)
  with real_runs.Started(workdir, data=data, **settings) as run:
    run.wait_for(lambda: real_runs.steps(workdir))
    full = 0, resource.RLIM_INFINITY
    resource.prlimit(run.processes[0].pid, resource.RLIMIT_FSIZE, full)
    assert run.codes() == [4]
  saved = real_runs.steps(workdir)
  assert saved and max(real_runs.losses(workdir)) >= saved[-1]
  assert not list(workdir.glob('lock*')) and not list(workdir.rglob('*tmp*'))
  real_runs.train(workdir, data=data, **settings | dict(steps=saved[-1] + 1))
  seen = real_runs.losses(workdir)
  assert sorted(seen) == list(range(1, saved[-1] + 2))
