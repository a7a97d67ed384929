"""What the processes of a job learn of one another, with real processes."""

import re
import signal

import multihost
import pytest

GATHER = '''
from irepa_jax.distributed import processes
texts = [processes.gather('x' * (3000 * rank + i)) for i in range(100)]
result(sizes=[[len(x) for x in row] for row in texts])
result(worst=processes.worst(7 if rank == 1 else 2))
result(first=processes.from_first([5, 6, 7] if rank == 0 else [1], 2))
'''


def test_texts_of_any_length_come_in_order():
  for results in multihost.run(GATHER, processes=3, devices=1):
    sizes, worst, first = results
    assert sizes['sizes'] == [[i, 3000 + i, 6000 + i] for i in range(100)]
    assert (worst['worst'], first['first']) == (7, [5, 6])


# Everyone but one waits: in Python, or in a collective that never comes.
WAIT = '''
import time
from jax.experimental import multihost_utils
from irepa_jax import errors, cli
from irepa_jax.distributed import peers
peers.at_end(lambda: print('LAST WORDS', flush=True))
multihost_utils.process_allgather(jnp.ones(()))
def wait():
  print('READY', flush=True)
  if arguments['where'] == 'python':
    time.sleep(1000)
  multihost_utils.process_allgather(jnp.ones(()))
def main(args):
  if rank != arguments['first']:
    wait()
  if arguments['how'] == 'refuse':
    raise errors.DataError('shard 7 is missing')
  if arguments['how'] == 'defect':
    raise RuntimeError('a defect')
  print('READY', flush=True)
  time.sleep(1000)
sys.argv = ['test']
cli.run(main)
'''


KILL = 'kill', 75, 'process {} on .* is gone without a word'
REFUSE = 'refuse', 3, r'process {} \(.*\): shard 7 is missing'
DEFECT = 'defect', 1, r'process {} \(.*\): RuntimeError: a defect'


@pytest.mark.parametrize(
    'first, how, status, line, where',
    [
        (0, *KILL, 'collective'),
        (1, *KILL, 'python'),
        (1, *REFUSE, 'collective'),
        (0, *DEFECT, 'collective'),
    ],
)
def test_the_end_of_one_process_ends_all(first, how, status, line, where):
  other = 1 - first
  options = dict(where=where, first=first, how=how)
  with multihost.Job(WAIT, processes=2, devices=1, **options) as job:
    if how == 'kill':
      for rank in (first, other):
        job.wait_for('READY', rank)
      job.send(signal.SIGKILL, first)
    codes = job.codes(timeout=60)
    said = [s for s in job.output(other).splitlines() if 'ERROR: ' in s]
  assert codes[other] == status, said
  assert codes[first] == (-signal.SIGKILL if how == 'kill' else status)
  assert re.fullmatch(f'ERROR: {line.format(first)}.*', said[-1])
  assert 'LAST WORDS' in job.output(other)
