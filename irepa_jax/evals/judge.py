"""All scores of samples against a reference, and the record of how.

A figure can be compared with another one only if everything that moves it is
the same: the number of images, their labels, sampler and average, the weights
of Inception, the reference, the variant of each score. The record holds them
all, beside the figures, in one JSON.
"""

import dataclasses
import datetime
import functools
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from irepa_jax import errors
from irepa_jax.distributed import processes
from irepa_jax.evals import references
from irepa_jax.evals import scores
from irepa_jax.evals import statistics
from irepa_jax.names import file_names

NEIGHBOURS = 3  # of precision and recall
KID_SUBSET = 1000
FIDELITY_SEED = 2020  # with which torch-fidelity shuffles before its splits
FULL_RANK = 2048  # fewer images than features: FID is far too large
MAIN = (
    'fid',
    'sfid',
    'inception_score',
    'precision',
    'recall',
    'kid',
    'kid_std',
)


def compare(samples, reference=None, *, splits=0, half=False):
  """Scores a statistics.Summary of samples against one of a reference.

  Args:
    samples: with all rows.
    reference: None leaves only the Inception Score.
    splits: of the Inception Score: 0 is ADM's, 5000 images each in their order;
      otherwise as many, of shuffled images, as torch-fidelity has them (10).
    half: distances of precision and recall in float16, as ADM.

  Returns:
    ({score: float}, {score left out: why}).
  """
  values, left_out = {}, {}
  if statistics.LOGITS in samples.rows:
    values['inception_score'] = inception_score(samples, splits)
  if reference is None:
    left_out['fid, sfid, precision, recall, kid'] = 'they need a reference'
    return values, left_out
  for feature, fit in samples.fits.items():
    if feature in reference.fits:
      values[distance_name(feature)] = scores.fid(
          *reference.fits[feature], *fit
      )
    else:
      left_out[distance_name(feature)] = (
          f'the reference has no statistics of {feature}'
      )
  for feature, rows in samples.rows.items():
    if statistics.compared(feature):
      found, missing = _of_rows(feature, rows, reference, half)
      values |= found
      left_out |= missing
  return {k: values[k] for k in sorted(values, key=_place)}, left_out


def inception_score(samples, splits):
  """Returns the Inception Score by the protocol that `splits` names."""
  logits = samples.rows[statistics.LOGITS]
  if not splits:
    return scores.inception_score(logits)
  return scores.inception_score(logits, splits, shuffle_seed=FIDELITY_SEED)


def distance_name(feature):
  """Names the Frechet distance of a feature: fid, sfid, fd_dinov2-vit-b ..."""
  known = {statistics.POOL: 'fid', statistics.SPATIAL: 'sfid'}
  return known.get(feature, f'fd_{feature.removesuffix("/pool")}')


def _of_rows(feature, fake, reference, half):
  """Returns the scores that compare rows, and those left out."""
  real = reference.rows.get(feature)
  embedding = feature.endswith('/embedding')
  if real is None or not len(real):
    names = 'cmmd' if embedding else 'precision, recall, kid'
    why = 'the reference has statistics but no features of single images'
    return {}, {names: why}
  if embedding:
    return {'cmmd': scores.cmmd(real, fake)}, {}
  values, left_out, fewest = {}, {}, min(len(real), len(fake))
  if fewest > NEIGHBOURS:
    precision, recall = scores.precision_recall(
        real, fake, NEIGHBOURS, half=half
    )
    values = {'precision': precision, 'recall': recall}
  else:
    left_out['precision, recall'] = f'{fewest} images; 4 or more'
  if fewest >= KID_SUBSET:
    mean, deviation = scores.kid(real, fake, subset_size=KID_SUBSET)
    values |= {'kid': mean, 'kid_std': deviation}
  else:
    left_out['kid'] = f'{fewest} images; its subsets have {KID_SUBSET:,}'
  return values, left_out


def _place(name):
  return (MAIN.index(name) if name in MAIN else len(MAIN), name)


@dataclasses.dataclass(frozen=True)
class Judge:
  """What judges images: networks, a reference, the variants of the scores.

  mesh: on which the spaces are; batch_size: images at a time on all of it.
  spaces: spaces.Space of each network.
  reference: references.Reference, or None.
  splits, half: of `compare`; kept: of references.summarise.
  """

  mesh: Any
  spaces: tuple[Any, ...]
  reference: Any = None
  splits: int = 0
  half: bool = False
  kept: int = references.KEPT
  batch_size: int = 256

  def open_reference(self):
    """Reads the reference, once, by all processes together."""
    return self._summary

  @functools.cached_property
  def _summary(self):
    if self.reference is None:
      return None
    return references.summarise(
        self.reference,
        self.spaces,
        self.mesh,
        batch_size=self.batch_size,
        kept=self.kept,
    )

  @functools.cached_property
  def settings(self):
    """Everything about the judge that moves a score. One process asks."""
    return {
        'weights_sha256': {space.name: space.sha256 for space in self.spaces},
        'reference_sha256': (
            self.reference and references.sha256(self.reference)
        ),
        'reference_rows': self.kept,
        'inception_score_splits': (
            f'{self.splits}, shuffled with seed {FIDELITY_SEED}'
            if self.splits
            else f'of {scores.ADM_SPLIT} images, in order'
        ),
        'neighbours': NEIGHBOURS,
        'neighbour_distances': 'float16' if self.half else 'float32',
    }

  def record(self, samples, about):
    """Scores samples; returns the result of the evaluation, for JSON.

    samples: their statistics.Summary; about: what they are and how they were
    made. The reference has been opened.
    """
    values, left_out = compare(
        samples, self._summary, splits=self.splits, half=self.half
    )
    device = self.mesh.devices.flat[0]
    return values | {
        'left_out': left_out,
        'samples': about,
        'reference': (
            self.reference
            and references.described(self.reference, self._summary)
        ),
        'settings': self.settings,
        'made': {
            'time': (
                datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
            ),
            'devices': f'{self.mesh.size} x {device.device_kind}',
            'processes': jax.process_count(),
            'numpy': np.__version__,
            **processes.software(),
        },
    }


def write(path, found):
  """Writes a record; the file appears when it is whole."""
  path = epath.Path(file_names.check(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.parent / f'{path.name}.new'
  new.write_text(json.dumps(found, indent=1))
  new.replace(path)


def read(path):
  """Reads a record; DataError if it is none."""
  try:
    return json.loads(epath.Path(path).read_text())
  except ValueError as error:
    raise errors.DataError(
        f'{path} is no result of an evaluation: {error}; delete it'
    ) from error


def table(found):
  """Returns the figures of a record as lines for a terminal."""
  lines = [
      f'{name:16} {value:.6g}'
      for name, value in found.items()
      if isinstance(value, float)
  ]
  lines += [f'without {k}: {why}' for k, why in found['left_out'].items()]
  count = found['samples']['count']
  if 'fid' in found and count < FULL_RANK:
    lines.append(
        f'note: {count:,} images; FIDs of so few are too large and compare only'
        ' with FIDs of as many'
    )
  return '\n'.join(lines)
