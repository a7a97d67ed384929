"""Measures representations over a data set, one batch at a time.

A representation is anything that turns a batch of images into tokens: an
encoder, a file of saved tokens, a block of a diffusion model. Of its tokens
only a handful of numbers per image stay: the spatial metrics before and after
spatial normalisation, the similarity at each distance, and the mean token.
"""

from collections.abc import Callable
import functools
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import alignment
from irepa_jax import errors
from irepa_jax.analysis import masks as region
from irepa_jax.analysis import spatial

# Normalisations are named by their gamma as text, as in the tables.
RAW = ''  # tokens as they come


class Representation(NamedTuple):
  """Tokens by batch."""

  name: str
  grid: tuple[int, int]
  encode: Callable[[Any], jax.Array]  # inputs.Batch -> tokens [b n d]


class Measured(NamedTuple):
  """What is kept of a representation over N images.

  values: {gamma: {metric: float32 [N]}}; NaN where undefined.
  profile: {gamma: mean cosine at distances 0..h + w - 2}.
  pooled: mean token of each image, float32 [N d].
  kept: all tokens of some images, float32 [k n d], for pictures.
  """

  name: str
  grid: tuple[int, int]
  values: dict[str, dict[str, np.ndarray]]
  profile: dict[str, np.ndarray]
  pooled: np.ndarray
  kept: np.ndarray
  seconds: float  # without the first batch, which compiles
  timed: int  # images in that time

  @property
  def images_per_second(self):
    return self.timed / self.seconds if self.timed else float('nan')


def measure(
    representation, batches, *, gammas=(RAW, '0.6'), definition='code', keep=()
):
  """Runs a representation over batches and returns Measured.

  gammas: spatial normalisations to measure after; RAW is before any.
  definition: of the metrics, a key of spatial.DEFINITIONS.
  keep: positions of the images whose tokens are kept.
  """
  parts, watch, kept = [], _Watch(), []
  for batch in batches:
    tokens = representation.encode(batch)
    _check(representation, tokens, batch)
    wanted = np.flatnonzero(np.isin(batch.index[: batch.count], keep))
    kept += [np.float32(tokens[wanted])] if wanted.size or not kept else []
    masks = token_masks(batch.mask, representation.grid)
    part = {
        gamma: _values(tokens, masks, representation.grid, gamma, definition)
        for gamma in gammas
    }
    part = jax.device_get((part, tokens.mean(axis=1, dtype=jnp.float32)))
    parts.append(jax.tree.map(lambda v, n=batch.count: v[:n], part))
    _check_finite(representation, parts[-1][1], batch)
    watch.lap(batch.count)
  values, pooled = jax.tree.map(lambda *v: np.concatenate(v), *parts)
  _check_masks(values)
  profile = {gamma: values[gamma].pop('profile') for gamma in gammas}
  return Measured(
      representation.name,
      representation.grid,
      values,
      {g: np.mean(p, axis=0, dtype=np.float64) for g, p in profile.items()},
      pooled,
      np.concatenate(kept),
      watch.seconds,
      watch.images,
  )


def token_masks(mask, grid):
  """Turns masks bool [b s s] into tokens bool [b n]; all false if unusable."""
  if mask is None:
    return None
  tokens = region.patches(mask, *grid)
  return tokens & region.usable(tokens)[:, None]


def normalise(tokens, gamma):
  """Normalises tokens [b n d] over space; RAW leaves them as they are."""
  if gamma == RAW:
    return tokens
  return alignment.spatial_norm(jnp.asarray(tokens), float(gamma))


def mean_and_error(values):
  """Returns (mean, standard error, count) over images where it is defined."""
  known = np.float64(values[np.isfinite(values)])
  if not known.size:
    return float('nan'), float('nan'), 0
  error = known.std(ddof=1) / np.sqrt(known.size) if known.size > 1 else np.nan
  return float(known.mean()), float(error), int(known.size)


@functools.partial(jax.jit, static_argnames=('grid', 'gamma', 'definition'))
def _values(tokens, masks, grid, gamma, definition):
  """All metrics [b] and the profile [b distances] of a batch of tokens."""
  tokens = normalise(tokens, gamma)
  values = {'profile': spatial.profile(tokens, *grid)}
  for name, metric in spatial.DEFINITIONS[definition].items():
    if name != 'srss':
      values[name] = metric(tokens, *grid)
    elif masks is not None:
      values[name] = metric(tokens, *grid, masks=masks)
  return values


def _check(representation, tokens, batch):
  h, w = representation.grid
  if tokens.shape[:2] != (len(batch.index), h * w):
    raise errors.DataError(
        f'{representation.name} gives tokens {tuple(tokens.shape)} for'
        f' {len(batch.index)} images and a grid of {h} x {w}'
    )


def _check_finite(representation, pooled, batch):
  wrong = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
  if wrong.size:
    raise errors.DataError(
        f'{representation.name} gives tokens that are not finite for image'
        f' {batch.index[wrong[0]]}'
    )


def _check_masks(values):
  for metrics in values.values():
    if 'srss' in metrics and np.isnan(metrics['srss']).all():
      raise errors.DataError(
          f'none of {len(metrics["srss"])} masks has a quarter of the tokens in'
          ' the foreground and a quarter in the background, some of them near'
          ' and far from one another; --masks=none leaves SRSS out'
      )


class _Watch:
  """Times all batches but the first."""

  def __init__(self):
    self.seconds, self.images, self._start = 0.0, 0, None

  def lap(self, count):
    now = time.perf_counter()
    if self._start is not None:
      self.seconds += now - self._start
      self.images += count
    self._start = now
