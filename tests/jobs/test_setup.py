"""What a job sets up, and what it refuses before anything is compiled."""

import jax
import pytest

from configs import quickstart
from irepa_jax import build
from irepa_jax import errors
from irepa_jax.jobs import setup


def config(**changes):
  made = quickstart.get_config()
  made.update(changes)
  return made


def test_copies_of_the_weights_are_a_field():
  mesh = setup.make_mesh(config(mesh_replica=2, mesh_model=2))
  assert dict(mesh.shape) == {'replica': 2, 'data': 2, 'model': 2}


def test_a_patch_that_leaves_one_token_is_refused():
  with pytest.raises(errors.UsageError, match='8x8 as one token'):
    build.experiment(config(model='SiT-T/8'))


def test_processes_meet_between_compiling_and_running(monkeypatch):
  """The first run sets up collectives, and must find the others there."""
  events = []

  class Step:

    def lower(self, *arguments):
      events.append(('lower', arguments))
      return self

    def compile(self):
      events.append('compile')
      return lambda *arguments: events.append(('run', arguments))

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  meet = lambda text: events.append('meet')
  monkeypatch.setattr(setup.processes, 'gather', meet)
  step = setup.compiled_together(Step())
  step(1, 2)
  step(3, 4)
  assert events == [
      ('lower', (1, 2)), 'compile', 'meet', ('run', (1, 2)), ('run', (3, 4))
  ]  # fmt: skip
