"""Whatever moment a crash picks, a data set is whole or is not there."""

import crash_states
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.data import shards

SHARDS = [shards.Span(0, 2, 0, 3), shards.Span(1, 2, 3, 6)]


def test_every_state_of_a_recorded_preparation(tmp_path):
  before, changes = crash_states.load('prepare.json.gz')
  states = list(crash_states.states(before, changes))
  crash_states.write(states[-1], tmp_path / 'whole')
  whole = pipeline.load(tmp_path / 'whole', verify=True)
  settings = whole.manifest.settings
  counts = {'whole': 0, 'unfinished': 0}
  for files in states:
    folder = tmp_path / 'state'
    crash_states.write(files, folder)
    for span in SHARDS:  # what a second start would keep
      part = shards.finished(folder, span, settings)
      assert part is None or part.shard == whole.manifest.shards[span.index]
    if manifests.NAME not in files:
      counts['unfinished'] += 1
      with pytest.raises(errors.DataError, match=r'prepare') as raised:
        pipeline.load(folder)
      assert '\n' not in str(raised.value)
      continue
    counts['whole'] += 1
    found = pipeline.load(folder, verify=True)
    assert found.manifest == whole.manifest
    for i in range(len(whole)):
      np.testing.assert_equal(found.example(i), whole.example(i))
  print(len(changes), 'changes,', len(states), 'states:', counts)
  assert counts['unfinished'] > 10 and counts['whole'] >= 1
