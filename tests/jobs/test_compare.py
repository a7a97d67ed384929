"""Tables and curves of several runs."""

import json

import pytest

from irepa_jax import errors
from irepa_jax.jobs import compare

METRICS = ('eval/accuracy',)


def write(folder, preset, seed, values, **fields):
  folder.mkdir()
  config = {'preset': preset, 'seed': seed} | fields
  (folder / 'config.json').write_text(json.dumps(config))
  lines = [{'step': s, METRICS[0]: v} for s, v in values.items()]
  text = ''.join(
      json.dumps(line) + '\n' for line in [{'step': 1, 'loss': None}, *lines]
  )
  (folder / 'metrics.jsonl').write_text(text)
  return folder


def test_seeds_share_a_row(tmp_path):
  folders = [
      write(tmp_path / 'a', 'none', 0, {100: 0.25, 200: 0.5}),
      write(tmp_path / 'b', 'none', 1, {100: 0.125, 200: 0.75}),
      write(tmp_path / 'c', 'irepa', 0, {200: 1.0}),
  ]
  text = compare.compare(
      folders, tmp_path / 'out', metrics=METRICS, steps=[100, 200]
  )
  assert text.splitlines() == [
      '| run | accuracy at 100 | accuracy at 200 |',
      '|---|---|---|',
      '| none | 0.25 0.12 | 0.50 0.75 |',
      '| irepa | - | 1.00 |',
  ]
  assert (tmp_path / 'out.md').read_text() == text + '\n'
  assert (tmp_path / 'out.png').stat().st_size > 1000


def test_runs_of_one_preset_that_differ_are_named_by_folder(tmp_path):
  folders = [
      write(tmp_path / 'slow', 'irepa', 0, {200: 0.5}, lr=1e-4),
      write(tmp_path / 'fast', 'irepa', 0, {200: 0.75}, lr=1e-3),
  ]
  text = compare.compare(folders, tmp_path / 'out', metrics=METRICS)
  assert '| slow | 0.50 |' in text and '| fast | 0.75 |' in text


def test_a_folder_that_is_no_run(tmp_path):
  with pytest.raises(errors.UsageError, match='is not a run'):
    compare.compare([tmp_path], tmp_path / 'out', metrics=METRICS)
