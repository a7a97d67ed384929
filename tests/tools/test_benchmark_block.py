"""The experiment of one block, small and on a CPU."""

import types

import jax
import pytest

from irepa_jax import models
from irepa_jax.runs import chips
from irepa_jax.tools.benchmarks import block


@pytest.mark.parametrize('forms', ['cpu', 'tpu'])
def test_figures_of_the_blocks(monkeypatch, forms):
  monkeypatch.setattr(models, 'sizes', lambda name: {'width': 16, 'heads': 2})
  chip = types.SimpleNamespace(clock=1.5e9)
  monkeypatch.setattr(chips, 'find', lambda device: chip)
  monkeypatch.setattr(block, 'IMAGES', 2)
  monkeypatch.setattr(block, 'TOKENS', 4)
  figures = block.estimate(jax.devices()[0], forms)
  # A CPU counts no cycles.
  assert figures['forms'] == forms and figures['all_ms'] == 0.0
  assert figures['estimate'] == {'largest': []}
