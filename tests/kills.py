"""Kills real runs at random moments and compares what is left, bit for bit.

  PYTHONPATH=. python tests/kills.py --kills=100 [--processes 1 2]

Not a test of CI: some seconds for each kill. A run that nothing happens to comes
first, for each number of processes; then runs are killed with SIGKILL, one or
all of their processes, from the start of the interpreter to the last step, and
started again by the same command until they are complete. After every kill each
checkpoint must have the digests of the untouched run at its step; at the end
all arrays and all lines of metrics must be equal. A process whose peer was
killed must end by itself with 75 and one line that names it.
"""

import argparse
import collections
import json
import pathlib
import random
import signal
import tempfile
import time

import jax
import numpy as np
import real_runs

from irepa_jax.checkpoints import manager

STEPS, EVERY, DEVICES = 24, 2, 2
SETTINGS = dict(
    preset='none', steps=STEPS, checkpoint_every=EVERY, keep=2, devices=DEVICES,
    batch_size=8,
)  # fmt: skip


def main():
  options = argparse.ArgumentParser(description=__doc__)
  options.add_argument('--kills', type=int, default=100)
  options.add_argument('--processes', type=int, nargs='+', default=[1, 2])
  options.add_argument('--seed', type=int, default=time.time_ns() % 10**6)
  chosen = options.parse_args()
  dice = random.Random(chosen.seed)
  print(f'seed {chosen.seed}, jax {jax.__version__}', flush=True)
  with tempfile.TemporaryDirectory() as scratch:
    data = real_runs.data_set(pathlib.Path(scratch, 'data'))
    total = collections.Counter()
    for processes in chosen.processes:
      trial = Trial(pathlib.Path(scratch), data, processes, dice)
      total += trial.go(chosen.kills // len(chosen.processes))
  print(', '.join(f'{count} {name}' for name, count in total.items()))


class Trial:
  """Runs of one number of processes, and the one that nothing happens to."""

  def __init__(self, scratch, data, processes, dice):
    self._scratch, self._dice = scratch, dice
    self._settings = SETTINGS | dict(data=data, processes=processes)
    self._processes = processes
    self._straight = scratch / f'straight{processes}'
    settings = self._settings | dict(keep_every=EVERY)
    real_runs.train(self._straight, **settings)  # compiles, into the cache
    started = time.monotonic()
    real_runs.train(scratch / f'timed{processes}', **settings)
    self._seconds = time.monotonic() - started
    self._wanted = digests(self._straight)
    assert sorted(self._wanted) == list(range(EVERY, STEPS + 1, EVERY))

  def go(self, kills):
    """Kills so often; returns what happened, counted."""
    counts, run = collections.Counter(), 0
    while counts['kills'] < kills:
      run += 1
      workdir = self._scratch / f'run{self._processes}_{run}'
      workdir.mkdir()
      complete = False
      while not complete:
        left = kills - counts['kills']
        complete = not self._start(workdir, counts, kill=left > 0)
      self._compare(workdir)
      counts['complete runs equal in every bit'] += 1
    return counts

  def _start(self, workdir, counts, kill):
    """Starts a run; returns whether it was killed before its end."""
    with real_runs.Started(workdir, **self._settings) as run:
      counts['starts'] += 1
      happened = self._moment(workdir)
      while kill and not happened() and run.processes[0].poll() is None:
        time.sleep(0.001)
      if not kill or run.processes[0].poll() is not None:
        assert not any(run.codes()), run.output()[-3000:]
        return False
      victims = self._victims()
      for rank in victims:
        run.send(signal.SIGKILL, rank)
      codes = run.codes()
      counts['kills'] += 1
      self._check_rest(run, codes, victims)
    seen = digests(workdir)
    for step, leaves in seen.items():
      assert leaves == self._wanted[step], f'step {step} differs'
    counts['checkpoints compared'] += len(seen)
    print(
        f'{self._processes} processes, kill {counts["kills"]}: of'
        f' {victims}, checkpoints {sorted(seen) or "none"} equal', flush=True,
    )  # fmt: skip
    return True

  def _moment(self, workdir):
    """Returns f() that says whether the random moment to kill has come."""
    end = time.monotonic() + self._dice.uniform(0, self._seconds)
    if self._dice.random() < 0.4:  # at any time from the start
      return lambda: time.monotonic() > end
    done = max(real_runs.losses(workdir), default=0)
    step, wait = done + self._dice.randint(1, 5), self._dice.uniform(0, 0.3)

    def happened():  # soon after a step: while one is saved, or the next goes on
      if max(real_runs.losses(workdir), default=0) < step:
        return False
      time.sleep(wait)
      return True

    return happened

  def _victims(self):
    ranks = list(range(self._processes))
    return ranks if self._dice.random() < 0.3 else [self._dice.choice(ranks)]

  def _check_rest(self, run, codes, victims):
    """Those whose peer was killed end by themselves, and say why."""
    for rank, code in enumerate(codes):
      if rank not in victims and code != 0:
        said = run.output(rank)
        assert code == 75, f'{code}: {said[-3000:]}'
        assert f'process {victims[0]} on ' in said, said[-3000:]

  def _compare(self, workdir):
    assert real_runs.losses(workdir) == real_runs.losses(self._straight)
    for part in ('params', 'opt_state', 'ema'):
      trees = [
          manager.restore_item(folder / 'checkpoints', part, step=STEPS)[0]
          for folder in (workdir, self._straight)
      ]
      for one, other in zip(*map(jax.tree.leaves, trees), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def digests(workdir):
  """Returns {step: digests of its leaves} of the checkpoints of a run."""
  folder = workdir / 'checkpoints'
  return {
      step: {
          name: leaf['digest']
          for name, leaf in json.loads(
              (folder / str(step) / 'meta' / 'metadata').read_text()
          )['leaves'].items()
      }
      for step in manager.steps(folder)
  }


if __name__ == '__main__':
  main()
