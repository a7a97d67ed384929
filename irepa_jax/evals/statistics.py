"""What an evaluation keeps of a set of images: moments, and some rows.

Features pass through in batches. Of those that a Frechet distance reads, the
moments are summed; rows are kept where a score reads the rows themselves: of
samples all, of a reference an even spread, since a data set has more images than
memory has room. Statistics are written for reuse under the names of the ADM
suite, which reads them too:

  mu, sigma       of Inception 'pool'        mu_s, sigma_s   of 'spatial'

Those of another network stand under mu/SPACE/FEATURE and sigma/SPACE/FEATURE,
kept rows under rows/SPACE/FEATURE.
"""

from collections.abc import Iterable
import functools
import json
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import numpy as np
import tqdm

from irepa_jax import errors
from irepa_jax.data import pipeline
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.evals import image_sets
from irepa_jax.evals import parts
from irepa_jax.evals import scores

BLOCK = 1024  # rows whose moments are summed at once
POOL, SPATIAL, LOGITS = (
    'inception/pool',
    'inception/spatial',
    'inception/logits',
)
FITTED = ('pool', 'spatial')  # features that a Frechet distance reads
ADM = {POOL: ('mu', 'sigma'), SPATIAL: ('mu_s', 'sigma_s')}
META = 'irepa_jax'  # a JSON text beside the arrays
ROWS = 'rows/'


class Summary(NamedTuple):
  """A set of images as scores read it.

  count: of the images.
  fits: {SPACE/FEATURE: (mean [d], covariance [d d])}, float64.
  rows: {SPACE/FEATURE: float32 [k d]}, in the order of the images.
  """

  count: int
  fits: dict[str, tuple[np.ndarray, np.ndarray]]
  rows: dict[str, np.ndarray]


def from_images(
    spaces, images, mesh, *, batch_size, kept=None, label=''
) -> Summary:
  """Runs a set of images through networks; see `summarise`.

  The result is complete on the first process alone.
  """
  blocks = extract(spaces, images, mesh, batch_size=batch_size, label=label)
  return summarise(blocks, images.count, kept=kept)


def extract(spaces, images, mesh, *, batch_size, label=''):
  """Yields {SPACE/FEATURE: float32 [b d]} over a set, to the first process.

  Every process decodes and feeds the rows of its own devices; the others yield
  empty dicts. A bar shows the progress.
  """
  unit = sharding.row_parts(mesh)
  size = -(-min(batch_size, images.count) // unit) * unit
  split = sharding.batch_sharding(mesh)
  rows = pipeline.local_rows(split, size)
  batches = pipeline.prefetch(images.batches(size, rows))
  hidden = not processes.is_first()
  with tqdm.tqdm(
      total=images.count, unit='img', desc=label or None, disable=hidden
  ) as bar:
    ahead = None
    for batch in batches:
      done, ahead = ahead, joined(
          spaces, pipeline.to_device(batch, split), mesh
      )
      if done is not None:
        yield _taken(done, size)
        bar.update(size)
    last = images.count - bar.n
    yield _taken(ahead, last)
    bar.update(last)


def joined(spaces, images, mesh):
  """Returns the features of images in all spaces, whole on every device."""
  found = {
      f'{space.name}/{name}': rows
      for space in spaces
      for name, rows in space.extract(images).items()
  }
  return _whole(mesh)(found)


@functools.cache
def _whole(mesh):
  return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))


def _taken(features, count):
  if not processes.is_first():
    return {}
  return {
      k: np.asarray(x.addressable_data(0))[:count] for k, x in features.items()
  }


def summarise(blocks: Iterable[dict[str, Any]], count, *, kept=None) -> Summary:
  """Sums moments over blocks of features and keeps rows.

  Args:
    blocks: {SPACE/FEATURE: float32 [b d]}, `count` rows in all.
    count: of the images.
    kept: rows that are kept, evenly spread; None is all.

  Raises DataError where a feature is not finite.
  """
  chosen = spread(count, count if kept is None else kept)
  moments, rows, waiting, seen = {}, {}, {}, 0
  for block in blocks:
    for name, x in block.items():
      mask = chosen[seen : seen + len(x)]
      if fitted(name):
        _wait(waiting.setdefault(name, []), x, moments, name)
      if compared(name) or (kept is None and name == LOGITS):
        if name not in rows:  # whole from the start: lists would take twice
          rows[name] = np.empty((chosen.sum(), x.shape[1]), x.dtype)
        first = chosen[:seen].sum()
        rows[name][first : first + mask.sum()] = x[mask]
    seen += max(map(len, block.values()), default=0)
  for name, left in waiting.items():
    _merge(left, moments, name)
  return Summary(
      count,
      {name: scores.statistics(found) for name, found in moments.items()},
      rows,
  )


def fitted(name):
  """Whether a Frechet distance reads this feature."""
  return name.endswith(FITTED)


def compared(name):
  """Whether a score compares rows of this feature with the reference's."""
  return name == POOL or name.endswith('/embedding')


def spread(count, kept):
  """Returns a mask [count] with `kept` trues at even distances, or all."""
  mask = np.zeros(count, bool)
  if kept:
    mask[np.arange(min(kept, count)) * count // min(kept, count)] = True
  return mask


def _wait(left, x, moments, name):
  """Collects rows until they are worth a sum."""
  left.append(x)
  if sum(map(len, left)) >= BLOCK:
    _merge(left, moments, name)


def _merge(left, moments, name):
  if not left:
    return
  x = np.concatenate(left)
  left.clear()
  before = moments.get(name) or scores.no_moments(x.shape[1])
  moments[name] = scores.add(before, x)


# Files ------------------------------------------------------------------------


def write(path, summary, meta):
  """Writes an npz of statistics that `read` and the ADM suite read.

  meta: of the images and the networks, whatever JSON can hold.
  """
  arrays = {}
  for name, (mean, covariance) in summary.fits.items():
    mu, sigma = fit_keys(name)
    arrays |= {mu: mean, sigma: covariance}
  arrays |= {ROWS + name: x for name, x in summary.rows.items()}
  arrays[META] = np.array(json.dumps(meta | {'count': summary.count}))
  with parts.written(epath.Path(path)) as file:
    np.savez(file, **arrays)


def fit_keys(name):
  """Returns the names of mean and covariance of a feature in the npz."""
  return ADM.get(name, (f'mu/{name}', f'sigma/{name}'))


def read(path) -> tuple[Summary | None, dict[str, Any]]:
  """Reads the statistics of an npz and its meta.

  (None, {}) where it holds none, but perhaps images. Of statistics that others
  have written the count is 0: they do not tell it, and the meta is empty.
  """
  names = {n.removesuffix('.npy') for n in image_sets.npz_names(path)}
  features = [*ADM, *_others(names)]
  features = [n for n in features if set(fit_keys(n)) <= names]
  if not features:
    return None, {}
  kept = [n.removeprefix(ROWS) for n in sorted(names) if n.startswith(ROWS)]
  try:
    with epath.Path(path).open('rb') as file, np.load(file) as arrays:
      fits = {n: _fit(arrays, n, path) for n in features}
      rows = {n: arrays[ROWS + n] for n in kept}
      meta = json.loads(str(arrays[META])) if META in names else {}
  except (OSError, errors.DataError):
    raise
  except image_sets.DAMAGED as error:
    raise errors.DataError(f'{path} is damaged: {error}') from error
  return Summary(meta.get('count', 0), fits, rows), meta


def _others(names):
  """Names the features beside those of ADM."""
  return sorted(n.removeprefix('mu/') for n in names if n.startswith('mu/'))


def _fit(arrays, name, path):
  mean, covariance = (
      np.asarray(arrays[key], np.float64) for key in fit_keys(name)
  )
  d = mean.size
  right = mean.shape == (d,) and covariance.shape == (d, d)
  if not right or not (
      np.isfinite(mean).all() and np.isfinite(covariance).all()
  ):
    raise errors.DataError(
        f'{path}: {" and ".join(fit_keys(name))} are {list(mean.shape)} and'
        f' {list(covariance.shape)}; expected finite [d] and [d d]'
    )
  return mean, covariance
