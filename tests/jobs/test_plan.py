"""What a run needs, without running it."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from configs import sit_s
from irepa_jax import errors
from irepa_jax.distributed import collectives
from irepa_jax.jobs import plan


def test_sizes_without_a_compiler():
  figures = plan.plan(sit_s.get_config('irepa'))
  assert figures['parameters']['model'] == 32_957_200
  assert figures['mesh'] == {'replica': 1, 'data': 8, 'model': 1}
  # Parameters, two moments and one average of four bytes each, over 8 devices.
  whole = 16 * sum(figures['parameters'].values()) / 2**30
  # Small arrays, embeddings of labels and positions are whole on each.
  assert whole / 8 < figures['state_gib_per_device'] < 1.06 * whole / 8
  # 40.4 GFLOP with a projector to 768, and DINOv2-B forward.
  assert figures['train_gflop_per_image'] == pytest.approx(40.4 + 46.3, abs=0.5)


@pytest.mark.parametrize('name', ['v5e', 'v5e:2y4', 'v9:2x2'])
def test_unknown_topologies(name):
  with pytest.raises(errors.UsageError, match='like v5e:2x4'):
    plan.topology(name)


def test_collectives_are_counted_by_type():
  text = """
  %a = bf16[8,128]{1,0} all-gather(%b), replica_groups={}
  %c = (f32[8]{0}, f32[64]{0}) all-gather-start(%d), dimensions={0}
  %e = f32[] all-reduce(%f), to_apply=%add
  %g = bf16[8,128]{1,0} add(%b, %b)
  """
  assert collectives.counted(text) == {
      'all-gather bf16': 1, 'all-gather f32': 1, 'all-reduce f32': 1
  }  # fmt: skip


def test_a_program_that_cannot_be_read_back_has_no_text(caplog):
  class Program:

    def as_text(self):
      raise jax.errors.JaxRuntimeError('INTERNAL: not parsed\nstack')

  assert plan._text(Program()) == ''
  assert 'no count of collectives: INTERNAL: not parsed' in caplog.text


@pytest.mark.parametrize(
    'report, available, fits',
    [
        ({'arguments_gib': 1.3, 'temporaries_gib': 5.5}, 15.75, 'yes'),
        ({'arguments_gib': 9.0, 'temporaries_gib': 7.0}, 15.75, 'no: less'),
        ({'arguments_gib': 1.3, 'temporaries_gib': 5.5}, None, 'unknown'),
        ({}, 15.75, 'perhaps'),
        ({'state_gib_per_device': 16.0}, 15.75, 'no: less'),
    ],
)
def test_a_verdict_is_given(report, available, fits):
  zero = {'state_gib_per_device': 0.5, 'encoders_gib_per_device': 0.1}
  told = plan.verdict(zero | report, available)
  assert told['fits'].startswith(fits)


@pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='needs pip install libtpu'
)
def test_weights_stay_within_a_slice():
  figures = planned(
      '--config=configs/quickstart.py:none', '--topology=v5e:2x2', '--slices=2',
      '--config.batch_size=16', '--config.fsdp=true',
      '--config.scan_layers=false',
  )  # fmt: skip
  assert figures['mesh'] == {'replica': 2, 'data': 4, 'model': 1}
  # Every gradient once, in four parts by then: 1.26 MiB, of which 0.94 are of
  # weights that are split. No weight is gathered.
  assert figures['between_slices'].keys() == {'all-reduce f32'}
  assert 1.26 / 4 < figures['between_slices']['all-reduce f32']['mib'] < 0.57


def planned(*words):
  """Runs the command in a process of its own; libtpu stays once it is loaded."""
  done = subprocess.run(
      [sys.executable, '-m', 'irepa_jax.tools.plan', *words],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='needs pip install libtpu'
)
def test_compiles_for_two_tpu_slices():
  figures = planned(
      '--config=configs/sit_s.py', '--topology=v5e:2x2', '--slices=2',
      '--config.encoder=', '--config.batch_size=64',
  )  # fmt: skip
  assert figures['collectives']['all-gather bf16'] > 0
  assert figures['arguments_gib'] + figures['temporaries_gib'] < 15.75
  assert figures['mesh'] == {'replica': 2, 'data': 4, 'model': 1}
  # Gradients leave a slice; of everything else a few rows and biases.
  crossing = figures['between_slices']
  gradients = crossing.pop('all-reduce f32')
  assert gradients['mib'] > 50 * sum(x['mib'] for x in crossing.values())
