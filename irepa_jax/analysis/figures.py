"""Figures for a paper: each is written as PDF (vector) and PNG.

Colours are those of Okabe and Ito (2008) and the maps cividis, which people
with colour-blindness tell apart; markers repeat what colours say. Fonts stay
text in the PDF. matplotlib is an extra: pip install matplotlib.
"""

import functools
import importlib
import itertools
import logging
import math
import re

import numpy as np

from irepa_jax import errors

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')  # one more than colours
DASHES = ('-', '--', ':')
RAW, NORMALISED = COLOURS[0], COLOURS[1]
MAP = 'cividis'
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'legend.frameon': False,
    'pdf.fonttype': 42,
    'svg.fonttype': 'none',
    'text.parse_math': False,  # a name may have dollars
}
DPI = 150
FEW = 10  # points, below which a bootstrap interval says nothing
ROW_LABEL = 22  # characters of a line beside a picture
LETTER = 0.065  # inches of a letter beside an axis
ACROSS = 6  # images in one figure of components
PARTS = re.compile(r'[^-_.:@/+ ]*[-_.:@/+ ]*')  # where a name may be broken
LABELS = {
    'lds': 'LDS',
    'cds': 'CDS',
    'srss': 'SRSS',
    'rmsc': 'RMSC',
    'linear_probe': 'linear probe accuracy (%)',
    'fid': 'FID',
    'cknna': 'CKNNA with the encoder',
    'cka': 'CKA with the encoder',
}


def _styled(draw):
  """Runs a function under the common style, with the PNG at `dpi`."""

  @functools.wraps(draw)
  def styled(*args, dpi=DPI):
    with require().rc_context(STYLE | {'savefig.dpi': dpi}):
      return draw(*args)

  return styled


@_styled
def metrics(rows, path):
  """Draws each metric by encoder, before and after normalisation.

  rows: of report.rows; the bars are standard errors over images.
  """
  names = list(dict.fromkeys(row['encoder'] for row in rows))
  drawn = [m for m in ('lds', 'cds', 'srss', 'rmsc') if m in rows[0]]
  gammas = list(dict.fromkeys(row['gamma'] for row in rows))
  size = (2.1 * len(drawn) + 0.7 + _room(names), 0.28 * len(names) + 1.2)
  figure, axes = _grid(1, len(drawn), size, sharey=True)
  for axis, metric in zip(axes[0], drawn, strict=True):
    for i, gamma in enumerate(gammas):
      chosen = [row for row in rows if row['gamma'] == gamma]
      axis.errorbar(
          [row[metric] for row in chosen],
          [names.index(r['encoder']) + 0.16 * i for r in chosen],
          xerr=[row[f'{metric}_error'] for row in chosen],
          fmt=MARKERS[i],
          color=COLOURS[i],
          markersize=5,
          label=_gamma_label(gamma),
      )
    axis.set(xlabel=LABELS[metric], ylim=(len(names) - 0.5, -0.5))
    axis.set_yticks(range(len(names)), map(_short, names))
  _legend_above(figure, axes[0, 0])
  return save(figure, path)


@_styled
def decay(measured, path):
  """Draws the mean cosine of token pairs against their distance."""
  gammas = list(measured[0].profile)
  room = _room(item.name for item in measured)
  size = (2.8 * len(gammas) + room, max(3.2, 0.2 * len(measured) + 0.6))
  figure, axes = _grid(1, len(gammas), size, sharey=True)
  for axis, gamma in zip(axes[0], gammas, strict=True):
    for item, style in zip(measured, _styles(), strict=False):
      profile = item.profile[gamma]
      axis.plot(range(len(profile)), profile, label=_short(item.name), **style)
    axis.set(
        xlabel='Manhattan distance (tokens)',
        title=_gamma_label(gamma),
    )
  axes[0, 0].set_ylabel('mean cosine')
  _legend_beside(axes[0, -1])
  return save(figure, path)


@_styled
def similarity(image, entries, points, path):
  """Draws cosine maps of chosen points: a row per encoder.

  image: uint8 [s s 3]. entries: (name, {gamma: maps [points h w]}, places)
  with places the (row, column) of each point. points: (y, x) fractions.
  """
  gammas = list(entries[0][1])
  count = len(points)
  columns = 1 + len(gammas) * count
  room = _line_room(name for name, *_ in entries)
  size = (1.15 * columns + 0.5 + room, 1.2 * len(entries) + 0.4)
  figure, axes = _grid(len(entries), columns, size, layout='compressed')
  every = [m for _, maps, _ in entries for m in maps.values()]
  limits = {'vmin': min(map(np.min, every)), 'vmax': 1.0}
  for line, (name, maps, places) in zip(axes, entries, strict=True):
    _show(line[0], image)
    _name_row(line[0], name)
    for i, (y, x) in enumerate(points):
      line[0].plot(
          x * len(image),
          y * len(image),
          MARKERS[i % len(MARKERS)],
          color=COLOURS[i % len(COLOURS)],
          markeredgecolor='white',
          markersize=6,
      )
    for g, gamma in enumerate(gammas):
      for i, (row, column) in enumerate(places):
        axis = line[1 + g * count + i]
        shown = _show(axis, maps[gamma][i], cmap=MAP, **limits)
        axis.plot(
            column,
            row,
            MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            markeredgecolor='white',
            markersize=6,
        )
  for g, gamma in enumerate(gammas):
    axes[0, 1 + g * count].set_title(
        _gamma_label(gamma), loc='left', fontsize=9
    )
  figure.colorbar(shown, ax=axes, label='cosine', fraction=0.02, pad=0.01)
  return save(figure, path)


@_styled
def components(images, entries, path):
  """Draws the principal components of tokens beside each image.

  images: list of uint8 [s s 3]. entries: (name, {gamma: [colours [h w 3]]}),
  a row each. More images than fit become PATH_1, PATH_2 ...
  """
  names = []
  for i, start in enumerate(range(0, len(images), ACROSS)):
    some = slice(start, start + ACROSS)
    part = [
        (name, {gamma: colours[some] for gamma, colours in pictures.items()})
        for name, pictures in entries
    ]
    names += _components(images[some], part, f'{path}_{i}' if i else path)
  return names


def _components(images, entries, path):
  """Draws the components of as many images as stand in one figure."""
  gammas = list(entries[0][1])
  block = 1 + len(gammas)
  columns = block * len(images)
  room = _line_room(name for name, _ in entries)
  size = (1.15 * columns + 0.2 + room, 1.2 * len(entries) + 0.4)
  figure, axes = _grid(len(entries), columns, size, layout='compressed')
  for line, (name, pictures) in zip(axes, entries, strict=True):
    _name_row(line[0], name)
    for i, image in enumerate(images):
      _show(line[i * block], image)
      for g, gamma in enumerate(gammas, start=1):
        _show(line[i * block + g], pictures[gamma][i])
  for i in range(len(images)):
    for g, gamma in enumerate(gammas, start=1):
      axes[0, i * block + g].set_title(_gamma_label(gamma), fontsize=7)
  return save(figure, path)


@_styled
def correlations(panels, y, path):
  """Draws scatter plots of metrics against a score, one panel each.

  panels: of correlation.Panel; y: name of the score.
  """
  columns = min(len(panels), 3)
  lines = math.ceil(len(panels) / columns)
  figure, axes = _grid(lines, columns, (3.3 * columns, 3.0 * lines + 0.2))
  for axis, panel in zip(axes.flat, panels, strict=False):
    xs, ys = panel.xs, panel.ys
    axis.scatter(
        xs, ys, s=26, color=RAW, edgecolor='black', linewidth=0.6, zorder=3
    )
    _name_points(axis, panel)
    if panel.found:
      ends = np.array([np.min(xs), np.max(xs)])
      line = np.polyval(np.polyfit(xs, ys, 1), ends)
      axis.plot(ends, line, '--', color=NORMALISED)
    axis.set(xlabel=_label(panel.x), ylabel=_label(y))
    axis.set_title(_summary(panel.found, len(xs)), fontsize=8)
    axis.margins(x=0.16, y=0.12)
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  return save(figure, path)


@_styled
def curves(series, levels, path):
  """Draws metrics of runs over their steps, one panel each.

  series: {metric: {label: [(step, value)]}}. levels: {metric: (label, value)},
  drawn across.
  """
  columns = min(len(series), 3)
  lines = math.ceil(len(series) / columns)
  figure, axes = _grid(lines, columns, (3.3 * columns + 1, 2.6 * lines))
  for axis, (metric, by_label) in zip(axes.flat, series.items(), strict=False):
    for (label, points), style in zip(
        by_label.items(), _styles(), strict=False
    ):
      axis.plot(*zip(*points, strict=True), label=label, **style)
    if metric in levels:
      label, value = levels[metric]
      axis.axhline(value, color='black', linestyle=':', label=_short(label))
    axis.set(xlabel='step', ylabel=_label(metric))
  for axis in axes.flat[len(series) :]:
    axis.set_axis_off()
  handles, labels = axes.flat[len(series) - 1].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside right center', fontsize=8)
  return save(figure, path)


def save(figure, path):
  """Writes PATH.pdf and PATH.png and returns their names."""
  names = [f'{path}.pdf', f'{path}.png']
  for name in names:
    figure.savefig(name, bbox_inches='tight')
  return names


def require():
  """Returns matplotlib; UsageError where it is not installed."""
  logging.getLogger('fontTools').setLevel(logging.WARNING)
  try:
    return importlib.import_module('matplotlib')
  except ImportError as error:
    raise errors.UsageError(
        'figures need matplotlib: pip install matplotlib, or'
        ' --drawn=0'
    ) from error


def _grid(rows, columns, size, *, layout='constrained', **settings):
  """Returns (figure, axes [rows columns])."""
  module = importlib.import_module('matplotlib.figure')
  figure = module.Figure(figsize=size, layout=layout)
  return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def _show(axis, picture, **settings):
  axis.grid(False)
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set_visible(False)
  return axis.imshow(picture, interpolation='nearest', **settings)


def _styles():
  """42 pairs of colour and marker, so that neither has to be told alone."""
  pairs = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=True)
  for i, (colour, marker) in enumerate(pairs):
    dash = DASHES[i // len(COLOURS) % len(DASHES)]
    yield dict(color=colour, linestyle=dash, marker=marker, markersize=4)


def _name_points(axis, panel):
  """Writes encoders beside their points, towards the middle of the panel."""
  effects = importlib.import_module('matplotlib.patheffects')
  halo = [effects.withStroke(linewidth=2.5, foreground='white')]
  middle = (np.min(panel.xs) + np.max(panel.xs)) / 2
  for encoder, x, y in zip(panel.encoders, panel.xs, panel.ys, strict=True):
    left = x > middle
    axis.annotate(
        _short(encoder),
        (x, y),
        fontsize=7,
        ha='right' if left else 'left',
        xytext=(-5 if left else 5, 3),
        textcoords='offset points',
        path_effects=halo,
        zorder=4,
    )


def _legend_above(figure, axis):
  handles, labels = axis.get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=len(labels))


def _legend_beside(axis):
  axis.legend(loc='center left', bbox_to_anchor=(1.02, 0.5), fontsize=8)


def _gamma_label(gamma):
  if gamma == '':
    return 'tokens as they are'
  return f'normalised, γ = {gamma}'


def _label(column):
  return LABELS.get(column, column)


def _short(encoder):
  """Drops what all names share: dinov2-vit-b@/x/y.pth becomes dinov2-b@y.pth."""
  name, at, source = encoder.partition('@')
  name = name.replace('-vit-', '-').replace('_full2b_224', '')
  return name + at + source.rpartition('/')[2]


def _room(names):
  """Returns the inches of the longest name."""
  return LETTER * max(len(_short(name)) for name in names)


def _line_room(names):
  """Returns the inches of the longest line of the names beside rows."""
  lines = [line for name in names for line in _wrapped(name).split('\n')]
  return LETTER * max(map(len, lines))


def _name_row(axis, name):
  """Writes a name to the left of a row of pictures, level."""
  axis.set_ylabel(
      _wrapped(name), fontsize=7, rotation=0, ha='right', va='center'
  )


def _wrapped(name):
  """Breaks a name into lines, only where a word of it ends."""
  lines = ['']
  for part in PARTS.findall(_short(name)):
    if lines[-1] and part and len(lines[-1]) + len(part) > ROW_LABEL:
      lines.append('')
    lines[-1] += part
  return '\n'.join(line.rstrip() for line in lines)


def _summary(found, count):
  if found is None:
    return f'n = {count}: too few points'
  if count < FEW:
    return (
        f'Pearson r = {found.pearson:.2f}, Spearman ρ = {found.spearman:.2f}\n'
        f'n = {count}: too few points for an interval'
    )
  spread = lambda interval: '[{:.2f}, {:.2f}]'.format(*interval)
  return (
      f'Pearson r = {found.pearson:.2f} {spread(found.pearson_interval)}\n'
      f'Spearman ρ = {found.spearman:.2f} {spread(found.spearman_interval)},'
      f' n = {count}'
  )
