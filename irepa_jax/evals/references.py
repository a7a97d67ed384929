"""What samples are compared with: an npz of ADM, a folder, or a data set.

An npz may hold images (arr_0), statistics (mu, sigma, mu_s, sigma_s) or, as
VIRTUAL_imagenet256_labeled.npz does, both: then the Frechet distances read the
statistics, which are those of the whole training set, and precision, recall and
KID the images.
"""

from typing import Any
from typing import NamedTuple

from irepa_jax import errors
from irepa_jax.evals import image_sets
from irepa_jax.evals import statistics

KEPT = 10_000  # images whose rows are compared, as many as ADM's files hold


class Reference(NamedTuple):
  """A reference that has been looked at, but not yet read.

  stored: its statistics, None without any; meta: what was written with them.
  images: None where it has only statistics.
  """

  path: str
  stored: statistics.Summary | None
  meta: dict[str, Any]
  images: image_sets.ImageSet | None


def open_(path) -> Reference:
  """Looks at a reference; DataError in one line if it is none."""
  if not str(path).endswith('.npz'):
    return Reference(str(path), None, {}, image_sets.open_(path))
  stored, meta = statistics.read(path)
  images = None
  if stored is None or image_sets.MEMBER in image_sets.npz_names(path):
    images = _images(path)
  return Reference(str(path), stored, meta, images)


def check_side(reference, side):
  """Raises DataError unless samples of this (height, width) compare with it."""
  found = resolution(reference)
  if found and tuple(found) != tuple(side):
    raise errors.DataError(
        f'the samples are {side[0]}x{side[1]} pixels, those of the reference'
        f' {reference.path} {found[0]}x{found[1]}: scores compare images of one'
        ' size'
    )


def check_spaces(reference, spaces):
  """Raises DataError unless its statistics are those of these networks."""
  for space in spaces:
    made_by = reference.meta.get('spaces', {}).get(space.name, space.sha256)
    if made_by != space.sha256:
      raise errors.DataError(
          f'the statistics of {reference.path} were made by {space.name} with'
          f' weights of sha256 {made_by[:16]}, those here have'
          f' {space.sha256[:16]}'
      )
    if reference.images is None and not _has(reference, space):
      raise errors.DataError(
          f'the reference {reference.path} has statistics of'
          f' {", ".join(sorted(reference.stored.fits))}, not of {space.name},'
          ' and no images to make them from'
      )


def check_widths(reference, widths):
  """Raises DataError where stored features are not as wide as the networks'.

  widths: {SPACE/FEATURE: d}, of generated.layout.
  """
  stored = reference.stored or statistics.Summary(0, {}, {})
  found = {name: mean.size for name, (mean, _) in stored.fits.items()}
  found |= {name: x.shape[-1] for name, x in stored.rows.items()}
  for name in sorted(found.keys() & widths.keys()):
    if found[name] != widths[name]:
      raise errors.DataError(
          f'the reference {reference.path} has {found[name]} features of'
          f' {name}, the network gives {widths[name]}: it is of another network'
      )


def resolution(reference):
  """Returns (height, width) of its images, None where nothing tells it."""
  if reference.images:
    return reference.images.side
  return reference.meta.get('resolution')


def summarise(
    reference, spaces, mesh, *, batch_size=256, kept=KEPT
) -> statistics.Summary:
  """Reads a reference: what is stored as it is, the rest from its images.

  kept: images whose rows are kept, evenly spread over the set; 0 is none.
  """
  stored = reference.stored or statistics.Summary(0, {}, {})
  complete = all(_has(reference, space) for space in spaces)
  if reference.images is None or (complete and not kept):
    rows = stored.rows if kept else {}
    return statistics.Summary(stored.count, stored.fits, rows)
  made = statistics.from_images(
      spaces,
      reference.images,
      mesh,
      batch_size=batch_size,
      kept=kept,
      label='reference',
  )
  return statistics.Summary(
      stored.count if reference.stored else made.count,
      made.fits | stored.fits,
      made.rows | stored.rows,
  )


def described(reference, summary):
  """Returns what a result tells about a reference."""
  rows = {name: len(x) for name, x in summary.rows.items()}
  return {
      'images': reference.path,
      'count': summary.count or None,  # unknown in files of others
      'rows': max(rows.values(), default=0),
      'resolution': resolution(reference),
      'statistics': 'stored' if reference.stored else 'of the images',
  }


def sha256(reference):
  """Returns the SHA-256 of the npz, or what an image set has in its place."""
  if reference.images:
    return reference.images.sha256()
  return image_sets.file_sha256(reference.path)


def _has(reference, space):
  """Whether features of this network are stored."""
  stored = reference.stored
  names = [*stored.fits, *stored.rows] if stored else []
  return any(name.startswith(f'{space.name}/') for name in names)


def _images(path):
  try:
    return image_sets.open_npz(path)
  except errors.DataError as error:
    raise errors.DataError(
        f'reference {error} (or statistics mu and sigma)'
    ) from error
