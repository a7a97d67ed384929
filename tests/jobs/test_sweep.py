"""The sweep: every combination coarsely, the best finely, nothing twice."""

import csv
import json
import subprocess
import sys

import multihost
import numpy as np
import pytest
import small_space

from irepa_jax import errors
from irepa_jax.evals import spaces
from irepa_jax.jobs import evaluate
from irepa_jax.jobs import sweep

COARSE, FINE = 16, 24


@pytest.fixture(scope='module')
def real(tmp_path_factory):
  path = tmp_path_factory.mktemp('real') / 'real.npz'
  np.savez(path, small_space.images(40, 7, side=16))
  return str(path)


@pytest.fixture
def judge(real, monkeypatch):
  monkeypatch.setattr(
      spaces, 'inception', lambda source, mesh: small_space.space()
  )
  return evaluate.open_judge(real, side=(16, 16), batch_size=16)


CANDIDATES = sweep.choices([0, 1], [1.0, 3.0], [(0.0, 1.0)], [2])


def run(workdir, judge, **changes):
  settings = (
      dict(coarse_count=COARSE, count=FINE, settings={'seed': 5}) | changes
  )
  return sweep.evaluated(workdir, CANDIDATES, judge, **settings)


def test_combinations_without_guidance_have_one_interval():
  found = sweep.choices([0], [1.0, 2.0], [(0.0, 1.0), (0.2, 0.8)], [50, 250])
  assert len(found) == 2 + 4
  assert [c.low for c in found if c.guidance == 1] == [0.0, 0.0]


def test_curves_run_along_what_varies():
  row = lambda *choice: sweep.Row(sweep.Choice(*choice), 8, {'fid': choice[-1]})
  steps = [row(0, 1.0, 0.0, 1.0, n) for n in (4, 1, 2)]
  along, lines = sweep.curves(steps, 'fid')
  assert along == 'sample_steps'
  assert list(lines.values()) == [[(1, 1), (2, 2), (4, 4)]]
  along, lines = sweep.curves([*steps, row(0, 2.0, 0.0, 0.7, 4)], 'fid')
  assert along == 'guidance'
  assert lines['ema 0, 0..0.7, 4 steps, 8 images'] == [(1.0, 4), (2.0, 4)]


@pytest.mark.parametrize('metric, best', [('fid', min), ('recall', max)])
def test_the_best_of_few_images_is_evaluated_with_many(
    run_directory, judge, metric, best, tmp_path
):
  rows = run(run_directory, judge, metric=metric)
  assert [r.count for r in rows] == [FINE] + [COARSE] * 4
  coarse = [r.scores[metric] for r in rows[1:]]
  assert coarse[0] == best(coarse) and rows[0].choice == rows[1].choice
  assert {r.choice for r in rows[1:]} == set(CANDIDATES)
  sweep.write(f'{tmp_path}/out', rows, metric)
  table = list(csv.DictReader((tmp_path / 'out.csv').open()))
  assert [float(line[metric]) for line in table] == [
      r.scores[metric] for r in rows
  ]
  assert (tmp_path / 'out.md').read_text().count('\n') == 2 + len(rows)
  assert (tmp_path / 'out.png').read_bytes().startswith(b'\x89PNG')


def test_a_sweep_continues_where_it_stopped(run_directory, judge, monkeypatch):
  real_fill, calls = evaluate.sample.fill, []

  def fill(folder, count, *args, **settings):
    calls.append(count)
    if stop and len(calls) > 2:
      return False
    return real_fill(folder, count, *args, **settings)

  monkeypatch.setattr(evaluate.sample, 'fill', fill)
  stop = True
  assert run(run_directory, judge, settings={'seed': 6}) is None
  assert len(calls) == 3
  stop = False
  rows = run(run_directory, judge, settings={'seed': 6})
  assert len(calls) == 3 + 2 + 1  # two were there; the best has more images
  # A score is that of its JSON, with the settings of its row.
  for row in rows:
    paths = (run_directory / 'evaluations').glob(f'*-{row.count}-*.json')
    told = [json.loads(path.read_text()) for path in paths]
    (one,) = (
        t
        for t in told
        if t['samples']['ema_index'] == row.choice.ema
        and t['samples']['guidance'] == row.choice.guidance
        and t['samples']['seed'] == 6
    )
    assert {k: one[k] for k in row.scores} == row.scores
  assert run(run_directory, judge, settings={'seed': 6}) == rows
  assert len(calls) == 6


def test_a_metric_that_the_reference_cannot_give(
    run_directory, judge, tmp_path
):
  evaluate.write_statistics(judge, f'{tmp_path}/s.npz')
  bare = evaluate.open_judge(
      f'{tmp_path}/s.npz', side=(16, 16), batch_size=16, reference_rows=0
  )
  with pytest.raises(errors.UsageError, match='recall is not among .* fid'):
    run(run_directory, bare, metric='recall')


BAD = [
    ((), '--workdir=RUN and --reference'),
    (('--guidance=1,x',), '--guidance=1,x: float numbers'),
    (('--guidance=0.5',), 'guidance is 0.5'),
    (('--interval=0.5',), '--interval=0.5: LOW:HIGH'),
    (('--guidance=2', '--interval=0.9:0.1'), 'an interval'),
    (('--ema=2',), 'ema is 2; the run has 2'),
    (('--sample_steps=0',), 'sample_steps is 0'),
    (('--coarse_count=1',), 'coarse_count 1'),
]
COMMAND = """
import sys
from irepa_jax import cli
from irepa_jax.tools import sweep
sweep.define_flags()
for words in {lines}:
  sweep.flags.FLAGS.unparse_flags()
  for name in sweep.flags.FLAGS:
    sweep.flags.FLAGS[name].unparse()
  sweep.flags.FLAGS(['sweep', *words])
  try:
    sweep.main(['sweep'])
  except ValueError as error:
    print(error.exit_status, error)
"""


def test_bad_flags_are_told_before_anything(run_directory, real):
  run_flags = (f'--workdir={run_directory}', f'--reference={real}')
  lines = [[*(run_flags if flags else ()), *flags] for flags, _ in BAD]
  told = subprocess.run(
      [sys.executable, '-c', COMMAND.format(lines=lines)],
      capture_output=True, text=True, cwd=multihost.ROOT, check=True,
  ).stdout.splitlines()  # fmt: skip
  assert len(told) == len(BAD)
  for line, (_, said) in zip(told, BAD, strict=True):
    assert line.startswith('2 ') and said in line
