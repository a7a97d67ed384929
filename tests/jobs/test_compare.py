"""Tables and curves of several runs."""

import json
import sys

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


@pytest.fixture
def two(tmp_path):
  return [
      write(tmp_path / 'a', 'none', 0, {100: 0.25, 200: 0.5}),
      write(tmp_path / 'b', 'irepa', 0, {100: 0.5}),
  ]


@pytest.mark.parametrize(
    'metrics, steps, message',
    [
        (('eval/acuracy',), (), "no run has a metric 'eval/acuracy' .did you mean"),
        (('fid',), (), "no run has a metric 'fid'; they have eval/accuracy"),
        (('',), (), "no run has a metric ''"),
        (METRICS, (300,), 'accuracy at step 300; it is there at 100, 200'),
        (METRICS, (100, 7), 'accuracy at step 7;'),
    ],
)
def test_what_no_run_has_is_refused(two, tmp_path, metrics, steps, message):
  with pytest.raises(errors.UsageError, match=message):
    compare.compare(two, tmp_path / 'out', metrics=metrics, steps=steps)
  assert not list(tmp_path.glob('out.*'))


def test_runs_of_different_length_are_told_unless_steps_are_named(two, tmp_path):
  text = compare.compare(two, tmp_path / 'out', metrics=METRICS)
  assert text.endswith('different steps (100, 200): --steps compares them.')
  same = compare.compare(two, tmp_path / 'out', metrics=METRICS, steps=[100])
  assert 'different' not in same


def test_without_matplotlib_there_is_a_table(two, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  assert '0.50' in compare.compare(two, tmp_path / 'out', metrics=METRICS)
  assert 'no plot: pip install matplotlib' in capsys.readouterr().out
  assert not (tmp_path / 'out.png').exists()


@pytest.mark.parametrize('out', ['none/deep/x', 'a.b', '.hidden'])
def test_the_table_is_written_wherever_it_is_wanted(two, tmp_path, out):
  text = compare.compare(two, tmp_path / out, metrics=METRICS)
  assert (tmp_path / f'{out}.md').read_text() == text + '\n'


@pytest.mark.parametrize('config', ['{}', '{"seed": 1}', '{"model": "SiT-B/2"}'])
def test_a_config_that_lacks_fields_has_their_defaults(two, tmp_path, config):
  (two[0] / 'config.json').write_text(config)
  assert '0.50' in compare.compare(two, tmp_path / 'out', metrics=METRICS)
