"""Plans as tables, and two side by side."""

import types

import numpy as np
import pytest
from schedule_text import TEXT

from configs import sit_s
from irepa_jax import errors
from irepa_jax.jobs import plan
from irepa_jax.jobs import plan_table

REPORT = {
    'device': 'TPU v5 lite',
    'fits': True,
    'estimate': {
        'step_ms': 200.0,
        'largest': [
            {
                'share': 0.5,
                'cycles': 10,
                'runs': 28,
                'what': 'dot_general backward',
                'line': 'irepa_jax/models/layers.py:43',
            }
        ],
    },
}


def mesh(kind, count=8):
  device = types.SimpleNamespace(device_kind=kind)
  return types.SimpleNamespace(devices=np.full(count, device), size=count)


def test_time_days_and_cost_follow_from_the_cycles():
  config = sit_s.get_config('none')
  found = plan.estimate(TEXT, config, 1e9, mesh('TPU v5 lite'), price=2.0)
  step = (1000 + 28 * 103 + 50) / 1.5e9
  assert found['step_ms'] == round(1e3 * step, 2)
  assert found['img_per_s'] == pytest.approx(256 / step, rel=1e-6)
  assert found['mfu'] == pytest.approx(256e9 / 8 / 197e12 / step, rel=1e-3)
  assert found['days'] == round(400_000 * step / 86400, 2)
  assert found['cost'] == round(400_000 * step / 3600 * 16, 2)
  assert found['unknown'] == {'tpu_custom_call': 28}
  assert found['largest'][0]['line'] == 'irepa_jax/models/layers.py:43'


@pytest.mark.parametrize(
    ('kind', 'text'), [('NVIDIA H200', TEXT), ('TPU v9', TEXT), ('TPU v4', '')]
)
def test_no_estimate_without_a_clock_or_cycles(kind, text):
  config = sit_s.get_config('none')
  assert plan.estimate(text, config, 1e9, mesh(kind)) is None


def test_a_table_ends_with_the_largest_items():
  lines = plan_table.table(REPORT).splitlines()
  assert lines[0].split() == ['device', 'TPU', 'v5', 'lite']
  assert 'estimate.step_ms  200.0' in lines
  assert lines[-1].split()[:2] == ['50.0%', '28x']
  assert lines[-1].endswith('irepa_jax/models/layers.py:43')


def test_two_plans_stand_side_by_side_with_their_ratio():
  other = {'device': 'TPU v5 lite', 'estimate': {'step_ms': 150.0}, 'new': 1}
  text = plan_table.side_by_side(['a', 'b'], [REPORT, other])
  rows = {
      line.split()[0]: line.split()[1:]
      for line in text.splitlines()[1:]
      if line
  }
  assert rows['estimate.step_ms'] == ['200.0', '150.0', '0.750']
  assert rows['fits'] == ['True', '-'] and rows['new'] == ['-', '1']


def test_a_checkout_needs_a_configuration(tmp_path):
  (tmp_path / 'irepa_jax').mkdir()
  with pytest.raises(errors.UsageError, match='needs --config'):
    plan_table.elsewhere(str(tmp_path), '', [])
