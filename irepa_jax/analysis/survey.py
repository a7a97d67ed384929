"""Which encoder to align to, on these images: the whole analysis in one call.

Runs candidates one after the other over the same images and leaves in a folder

  metrics.csv     a row per candidate and normalisation: means, standard errors
  per_image.csv   the values of each image
  ranking.csv     candidates from best to worst, with intervals of their rank
  summary.json    the settings and the two tables above
  figures         metrics, decay, similarity_<image>, components (PDF and PNG)

The tables are written anew after each candidate, so that a long survey that is
stopped leaves what it has.
"""

import pathlib

import jax
import numpy as np
import tqdm

from irepa_jax import errors
from irepa_jax.analysis import figures
from irepa_jax.analysis import inputs
from irepa_jax.analysis import maps
from irepa_jax.analysis import measure
from irepa_jax.analysis import report
from irepa_jax.names import file_names

COLUMNS = (
    'encoder', 'gamma', 'lds', 'lds_error', 'cds', 'cds_error', 'srss',
    'srss_error', 'rmsc', 'rmsc_error', 'images_per_second',
)  # fmt: skip


def survey(
    candidates,
    pictures,
    out,
    *,
    masks=None,
    gammas=(measure.RAW, '0.6'),
    definition='code',
    batch_size=32,
    points=((0.5, 0.5), (0.2, 0.2), (0.75, 0.5)),
    drawn=2,
    dpi=figures.DPI,
    settings=None,
):
  """Measures candidates and writes tables and figures to the folder `out`.

  Args:
    candidates: pairs (name, load), of representations.
    pictures: inputs.Pictures.
    out: folder, made when absent.
    masks: of inputs.mask_reader; None leaves SRSS out.
    gammas: spatial normalisations to measure after; measure.RAW is before any.
    definition: of the metrics, a key of spatial.DEFINITIONS.
    batch_size: images at a time, at most.
    points: (y, x) in fractions of the image, for the similarity maps.
    drawn: images that are drawn, evenly spaced over the pictures, so that they
      are of several classes; 0 makes no figures at all.
    dpi: of the PNG figures; the PDF figures are vectors.
    settings: remembered in summary.json.

  Returns:
    A list of measure.Measured.
  """
  out, measured = folder(out), []
  shown = spread(len(pictures), drawn)
  if drawn:
    figures.require()
  for name, load in candidates:
    batches = inputs.batches(pictures, batch_size, masks)
    batches = tqdm.tqdm(
        batches, name, total=-(-len(pictures) // batch_size), unit='batch'
    )
    measured.append(
        measure.measure(
            load(), batches, gammas=gammas, definition=definition, keep=shown
        )
    )
    write_tables(measured, pictures, out, definition, settings or {})
  if drawn:
    draw(measured, pictures, out, definition, points, shown, dpi)
  return measured


def spread(count, drawn):
  """Returns the positions of `drawn` of `count` images, evenly spaced."""
  places = np.linspace(0, count - 1, min(drawn, count))
  return tuple(places.round().astype(int).tolist())


def folder(path):
  """Makes the folder of the output and returns it as a Path."""
  path = pathlib.Path(file_names.check(path))
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UsageError(f'--out={path} cannot be made: {error}') from error
  return path


def write_tables(measured, pictures, out, definition, settings):
  """Writes the four tables of a survey."""
  names = [pictures.name(i) for i in range(len(pictures))]
  rows = report.rows(measured, definition)
  ranked = report.ranking(measured)
  report.write_csv(out / 'metrics.csv', rows)
  report.write_csv(out / 'per_image.csv', report.per_image(measured, names))
  report.write_csv(out / 'ranking.csv', ranked)
  summary = {'settings': settings, 'metrics': rows, 'ranking': ranked}
  report.write_json(out / 'summary.json', summary)


def describe(measured, definition):
  """Returns the metrics and the ranking as text for a terminal."""
  rows = report.text(report.rows(measured, definition), COLUMNS)
  ranked = report.ranking(measured)
  columns = list(ranked[0])
  return f'{rows}\n\n{report.text(ranked, columns)}'


def draw(measured, pictures, out, definition, points, shown, dpi):
  """Writes the figures of a survey and returns their names.

  shown: positions of the pictures whose tokens were kept.
  """
  rows = report.rows(measured, definition)
  names = figures.metrics(rows, out / 'metrics', dpi=dpi)
  names += figures.decay(measured, out / 'decay', dpi=dpi)
  images = [pictures.read(i)[0] for i in shown]
  for i, image in enumerate(images):
    entries = [_similarity_maps(item, i, points) for item in measured]
    names += figures.similarity(
        image, entries, points, out / f'similarity_{i}', dpi=dpi
    )
  entries = [(item.name, _components(item)) for item in measured]
  return names + figures.components(
      images, entries, out / 'components', dpi=dpi
  )


def _similarity_maps(item, i, points):
  places = maps.cells(points, item.grid)
  by_gamma = {
      gamma: maps.similarity_maps(tokens[i], item.grid, places)
      for gamma, tokens in _normalised(item).items()
  }
  return item.name, by_gamma, places


def _components(item):
  pictures = {}
  for gamma, tokens in _normalised(item).items():
    like = next(iter(pictures.values()), [None] * len(tokens))
    pictures[gamma] = [
        maps.principal_colours(z, item.grid, other)
        for z, other in zip(tokens, like, strict=True)
    ]
  return pictures


def _normalised(item):
  """The kept tokens under each normalisation."""
  return {
      gamma: jax.device_get(measure.normalise(item.kept, gamma))
      for gamma in item.values
  }
