"""The compiler's estimate of a program, read from its text."""

from schedule_text import TEXT

from irepa_jax.jobs import stopwatch


def test_loops_count_by_their_trips_and_choices_by_their_longer_branch():
  found = stopwatch.items(TEXT)
  assert sum(item.cycles for item in found) == 1000 + 28 * (100 + 3 * 1) + 50
  assert {item.trips for item in found} == {1, 28, 84}


def test_an_item_names_our_line_and_its_direction():
  first, second = stopwatch.largest(stopwatch.items(TEXT), 2)
  assert (first['what'], first['runs']) == ('Block/dot_general backward', 28)
  assert first['line'] == 'irepa_jax/models/layers.py:43'  # the caller of flax
  assert first['cycles'] == 2800 and first['share'] == round(2800 / 3934, 4)
  assert second['what'] == 'dot_general forward'


def test_kernels_without_an_estimate_are_counted_as_unknown():
  assert stopwatch.unknown(TEXT) == {'tpu_custom_call': 28}


def test_a_program_without_estimates_has_no_items():
  text = 'ENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %g = f32[8] copy(%x)\n}'
  assert stopwatch.items(text) == [] and stopwatch.largest([]) == []
  assert stopwatch.items('') == []
