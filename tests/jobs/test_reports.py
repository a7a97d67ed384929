"""FID in training: in the log, in a JSON, and without a trace in the state."""

import json
import types

import jax
import multihost
import numpy as np
import pytest
import small_space

from configs import quickstart
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.jobs import evaluate
from irepa_jax.jobs import reports
from irepa_jax.jobs import train

COUNT, FINAL = 20, 28
SETTINGS = dict(
    steps=4, log_every=1, checkpoint_every=4, sample_every=0, sample_steps=3,
    batch_size=16, watchdog_s=0, eval_every=2, eval_count=COUNT,
    eval_final_count=FINAL, evaluator='fid',
)  # fmt: skip


@pytest.fixture(scope='module')
def real(tmp_path_factory):
  path = tmp_path_factory.mktemp('real') / 'real.npz'
  np.savez(path, small_space.images(40, 7, side=16))
  return str(path)


def config(real, **changes):
  made = quickstart.get_config('none')
  made.update(SETTINGS | {'eval_reference': real} | changes)
  return made


def scored(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {line['step']: line for line in found if 'eval/fid' in line}


def test_figures_are_logged_and_the_state_does_not_know(small, real, tmp_path):
  assert train.run(config(real), str(tmp_path / 'a')) == 0
  quiet = dict(eval_every=0, evaluator='')
  assert train.run(config(real, **quiet), str(tmp_path / 'b')) == 0
  for part in ('params', 'opt_state', 'ema'):
    one, other = (leaves(tmp_path / run, part) for run in 'ab')
    assert len(one) > 50
    for a, b in zip(one, other, strict=True):
      assert a.tobytes() == b.tobytes()  # bits, so that zeros of a sign differ

  lines = scored(tmp_path / 'a')
  assert sorted(lines) == [2, 4]
  for step, count in ((2, COUNT), (4, FINAL)):
    path = tmp_path / 'a' / 'evaluations' / f'{step:07d}-{count}.json'
    told = json.loads(path.read_text())
    for name in ('fid', 'sfid', 'inception_score', 'precision', 'recall'):
      assert told[name] == lines[step][f'eval/{name}']
    assert told['samples']['step'] == step and told['samples']['count'] == count
  assert (tmp_path / 'a' / 'curve.png').exists()

  # The command gives the same figures for the checkpoint of the last step.
  flags = dict(
      workdir=tmp_path / 'a', reference=real, count=FINAL, batch_size=16
  )
  assert evaluate.evaluate(out=str(tmp_path / 'e.json'), **flags) == 0
  offline = json.loads((tmp_path / 'e.json').read_text())
  np.testing.assert_allclose(offline['fid'], told['fid'], rtol=1e-4)
  assert offline['samples'] == told['samples']
  assert offline['settings'] == told['settings']


def leaves(workdir, part):
  tree, _ = manager.restore_item(workdir / 'checkpoints', part)
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


TWO = """
import small_space
from configs import quickstart
from irepa_jax.jobs import train
from irepa_jax.evals import spaces
spaces.inception_file = lambda source: None
spaces.inception = lambda source, mesh: small_space.space()
config = quickstart.get_config('none')
config.update(arguments['fields'])
result(code=train.run(config, arguments['workdir']))
"""


def test_two_processes_log_the_figures_of_one(
    small, real, tmp_path, monkeypatch
):
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # compiles faster
  fields = SETTINGS | dict(eval_reference=real, steps=2)
  multihost.run(TWO, fields=fields, workdir=str(tmp_path / 'two'))
  assert train.run(config(real, steps=2), str(tmp_path / 'one')) == 0
  two, one = (scored(tmp_path / name)[2] for name in ('two', 'one'))
  for name in ('fid', 'sfid', 'inception_score', 'precision', 'recall'):
    key = f'eval/{name}'
    np.testing.assert_allclose(two[key], one[key], rtol=1e-3, atol=1e-3)


def test_told_to_stop_in_the_middle_it_leaves_nothing(small, real, tmp_path):
  """As the loop sees it: no figures, and the step is saved."""
  built = config(real, eval_count=48)
  told = types.SimpleNamespace(calls=0)

  class Stop(train.preemption.Preemption):

    def reached(self, step):
      told.calls += 1
      return super().reached(step) or told.calls > 3

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.preemption, 'Preemption', Stop)
    assert train.run(built, str(tmp_path)) == 75
  assert scored(tmp_path) == {} and not (tmp_path / 'evaluations').exists()
  assert manager.steps(tmp_path / 'checkpoints') == [2]
  assert train.run(built, str(tmp_path)) == 0
  assert sorted(scored(tmp_path)) == [4]


def npz(path, pixels):
  np.savez(path, pixels)
  return str(path)


BAD = [
    (dict(eval_reference=''), errors.UsageError, 'eval_reference is empty'),
    (dict(eval_reference='/no.npz'), errors.DataError, 'not found'),
    (dict(eval_reference='OTHER'), errors.DataError, 'of one size'),
    (dict(evaluator='fdi'), errors.UsageError, "'digits', 'fid'"),
    (dict(evaluator=''), errors.UsageError, 'eval_every=0'),
]


@pytest.mark.parametrize('changes, error, said', BAD)
def test_bad_settings_are_told_by_check(
    small, real, tmp_path, changes, error, said
):
  other = npz(tmp_path / 'o.npz', small_space.images(8, side=32))
  changes = {k: other if v == 'OTHER' else v for k, v in changes.items()}
  with pytest.raises(error, match=said) as raised:
    train.run(config(real, **changes), str(tmp_path / 'r'), check_only=True)
  assert '\n' not in str(raised.value)


def test_missing_weights_of_inception_are_told_by_check(real, tmp_path):
  broken = config(real, eval_inception='/no/weights.pth')
  with pytest.raises(errors.DataError, match='--config.eval_inception=PATH'):
    train.run(broken, str(tmp_path), check_only=True)


def test_nothing_is_opened_where_nothing_is_scored(real):
  quiet = types.SimpleNamespace(
      config=config('', eval_every=0, eval_inception='/no/weights.pth')
  )
  assert reports._evaluator(quiet) is None
