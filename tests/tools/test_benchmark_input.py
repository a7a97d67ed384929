"""The benchmark of the input reads every source."""

import pytest

from configs import quickstart
from irepa_jax.tools.benchmarks import input as reading


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  for name, value in {'COUNT': 8, 'BATCH': 4, 'BATCHES': 2}.items():
    monkeypatch.setattr(reading, name, value)


def test_every_source_is_read_and_cores_are_counted():
  found = reading.benchmark(quickstart.get_config('irepa'), threads=2)
  assert set(found['sources']) == set(reading.SOURCES)
  for row in found['sources'].values():
    for chip, rate in found['img_per_s_of_a_chip'].items():
      cores = rate / row['per_core_s']
      assert row['cores_per_chip'][chip] == pytest.approx(cores, abs=0.006)
  lines = reading.table(found)
  assert len({line.count('|') for line in lines[2:]}) == 1
  assert len(lines) == 4 + len(reading.SOURCES)


def test_records_hold_what_the_source_says():
  sizes = {name: reading.measure(s, 0)['bytes'] for name, s in reading.SOURCES.items()}
  moments, tokens = 2 * 32 * 32 * 8, 2 * 256 * 768
  assert 0 < sizes['latents'] - moments < 100
  assert 0 < sizes['latents and features'] - moments - tokens < 100
  assert sizes['latents and png'] > sizes['latents and jpeg'] > sizes['jpeg']
