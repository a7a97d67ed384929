"""Figures with long names, one or many encoders, one or many images."""

import matplotlib
import numpy as np
import pytest

from irepa_jax.analysis import figures
from irepa_jax.analysis import survey

LONG = 'my_package.encoders.vision:make_network@weights_of_today.pth'
NAMES = [LONG, 'dinov2-vit-b', 'a' * 40, 'cost$5_and$6', '_hidden', 'x|y<z>&"q"']
NAMES += [f'encoder_number_{i}_of_a_long_list_of_them' for i in range(4)]


@pytest.mark.parametrize('name', NAMES)
def test_names_are_broken_between_words(name):
  lines = figures._wrapped(name).split('\n')
  assert ''.join(lines) == figures._short(name).rstrip()
  for line in lines[:-1]:
    assert line[-1] in '-_.:@/+ '
  assert all(len(line) <= figures.ROW_LABEL for line in lines) or 'a' * 40 in lines


def boxes_of_row_names(figure):
  figure.canvas.draw()
  labels = [a.yaxis.label for a in figure.axes if a.get_ylabel() not in ('', 'cosine')]
  return [label.get_window_extent() for label in labels]


def entries(count, pictures):
  rng = np.random.default_rng(0)
  colours = lambda: [rng.random((4, 4, 3)) for _ in range(pictures)]
  return [(name, {'': colours(), '0.6': colours()}) for name in NAMES[:count]]


@pytest.fixture
def drawn(monkeypatch):
  """Keeps the figures that are written instead of writing them."""
  kept = []
  keep = lambda figure, path: kept.append((figure, str(path))) or [str(path)]
  monkeypatch.setattr(figures, 'save', keep)
  return kept


@pytest.mark.parametrize('count', [1, 10])
@pytest.mark.parametrize('pictures', [1, 20])
def test_rows_of_components_do_not_touch(drawn, count, pictures):
  images = [np.zeros((8, 8, 3), np.uint8)] * pictures
  figures.components(images, entries(count, pictures), 'c')
  assert len(drawn) == -(-pictures // figures.ACROSS)
  for figure, _ in drawn[:1]:
    boxes = boxes_of_row_names(figure)
    assert len(boxes) == count
    for upper, lower in zip(boxes, boxes[1:], strict=False):
      assert upper.y0 >= lower.y1
    first = min(a.get_window_extent().x0 for a in figure.axes)
    assert all(box.x1 <= first for box in boxes)


@pytest.mark.parametrize('count', [1, 10])
def test_rows_of_similarity_do_not_touch(drawn, count):
  rng = np.random.default_rng(0)
  places = [(0, 0), (1, 2)]
  rows = [
      (name, {g: rng.random((2, 4, 4)) for g in ('', '0.6')}, places)
      for name in NAMES[:count]
  ]
  figures.similarity(np.zeros((8, 8, 3), np.uint8), rows, [(0, 0), (0.3, 0.6)], 's')
  boxes = boxes_of_row_names(drawn[0][0])
  assert len(boxes) == count
  for upper, lower in zip(boxes, boxes[1:], strict=False):
    assert upper.y0 >= lower.y1


@pytest.mark.parametrize('count', [1, 10])
def test_metrics_keep_room_for_the_plots(drawn, count):
  rows = [
      {'encoder': name, 'gamma': gamma, 'lds': 0.1, 'lds_error': 0.01}
      for name in NAMES[:count]
      for gamma in ('', '0.6')
  ]
  figures.metrics(rows, 'm')
  figure = drawn[0][0]
  with matplotlib.rc_context(figures.STYLE):
    figure.canvas.draw()
  box = figure.axes[0].get_window_extent()
  assert box.width > 1.2 * figure.dpi


def test_drawn_images_are_spread_over_the_data():
  assert survey.spread(100, 3) == (0, 50, 99)
  assert survey.spread(2, 5) == (0, 1)
  assert survey.spread(9, 0) == ()
