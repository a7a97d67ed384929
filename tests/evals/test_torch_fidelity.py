"""Our whole evaluation against torch-fidelity's own run, where it is installed.

pip install --no-deps torch-fidelity; the stored oracles of test_inception.py and
test_scores.py do not need it. FIDELITY_IMAGES=2000 compares as many of 64
pixels, which takes ten minutes.
"""

import importlib
import os
import sys
from unittest import mock

import golden_files
import jax
import numpy as np
import pytest
import random_inception

from irepa_jax.evals import scores
from irepa_jax.models import inception
from irepa_jax.models import inception_weights

torch = pytest.importorskip('torch')
# torch-fidelity imports torchvision for data sets and networks not used here.
MODULES = ('', '.datasets', '.transforms', '.transforms.functional')
STAND_IN = mock.patch.dict(
    sys.modules, {f'torchvision{name}': mock.MagicMock() for name in MODULES}
)
with STAND_IN:
  fidelity = pytest.importorskip('torch_fidelity')

IMAGES = int(os.environ.get('FIDELITY_IMAGES', 20))
CELL = 8 if IMAGES < 100 else 16
SIDE = 5 * CELL if IMAGES < 100 else 4 * CELL
BATCH = 20


@pytest.fixture(autouse=True)
def stand_in():
  with STAND_IN:
    yield


class Images(torch.utils.data.Dataset):

  def __init__(self, images):
    self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    return self.images[i]


def draw(seed, high):
  """Random uint8 images: coarse blocks, brighter with `high`, and noise."""
  rng = np.random.RandomState(seed)
  cells = SIDE // CELL
  coarse = rng.randint(0, high, (IMAGES, cells, cells, 3))
  coarse = coarse.repeat(CELL, 1).repeat(CELL, 2)
  noise = rng.randint(0, 256 - high, (IMAGES, SIDE, SIDE, 3))
  return (coarse + noise).astype(np.uint8)


def theirs(fake, real, path):
  return fidelity.calculate_metrics(
      input1=Images(fake),
      input2=Images(real),
      fid=True,
      isc=True,
      kid=True,
      prc=True,
      feature_extractor='inception-v3-compat',  # also for precision, recall
      feature_extractor_weights_path=str(path),
      save_cpu_ram=True,  # no worker processes
      kid_subsets=10,
      kid_subset_size=IMAGES // 2,
      batch_size=BATCH,
      cuda=False,
      cache=False,
      verbose=False,
  )


def ours(fake, real, params):
  apply = jax.jit(lambda p, x: inception.Inception().apply({'params': p}, x))
  blocks = lambda x: np.split(x, range(BATCH, len(x), BATCH))
  rows = lambda x: jax.tree.map(
      lambda *parts: np.concatenate(parts),
      *(apply(params, b) for b in blocks(x)),
  )
  fake, real = rows(fake), rows(real)
  fit = lambda x: scores.statistics(scores.add(scores.no_moments(2048), x))
  kid, deviation = scores.kid(
      real.pool, fake.pool, subsets=10, subset_size=IMAGES // 2
  )
  precision, recall = scores.precision_recall(real.pool, fake.pool)
  score = scores.inception_score(fake.unbiased, 10, shuffle_seed=2020)
  distance = scores.fid(*fit(fake.pool), *fit(real.pool))
  return {
      'frechet_inception_distance': distance,
      'inception_score_mean': score,
      'kernel_inception_distance_mean': kid,
      'kernel_inception_distance_std': deviation,
      'precision': precision,
      'recall': recall,
  }


def test_every_score_equals_torch_fidelity(tmp_path):
  shapes = golden_files.load('inception')['meta']['shapes']
  state_dict = random_inception.state_dict(shapes)
  tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
  for key in list(tensors):
    if key.endswith('running_var'):
      counter = key.replace('running_var', 'num_batches_tracked')
      tensors[counter] = torch.tensor(0)
  path = tmp_path / 'inception.pth'
  torch.save(tensors, path)
  fake, real = draw(0, 180), draw(1, 190)
  expected = theirs(fake, real, path)
  found = ours(fake, real, inception_weights.load(path))
  print(found, {key: expected[key] for key in found})
  for key, value in found.items():
    # Its float32 kernel, near 5 here, rounds KID; see the test below.
    atol = 1e-6 if key.startswith('kernel') else 0
    np.testing.assert_allclose(
        value, expected[key], rtol=1e-3, atol=atol, err_msg=key
    )


def test_kid_is_that_of_torch_fidelity_without_its_rounding():
  """Features with a large common mean, as those of Inception: a KID near 0."""
  draw = np.random.RandomState(0)
  real, fake = (
      (1.4 + 0.05 * draw.standard_normal((400, 64))).astype(np.float32)
      for _ in range(2)
  )
  found = scores.kid(real, fake, subsets=10, subset_size=200)
  metric = importlib.import_module('torch_fidelity.metric_kid')
  theirs = lambda dtype: list(
      metric.kid_features_to_metric(
          *(torch.from_numpy(x).to(dtype) for x in (fake, real)),
          kid_subsets=10,
          kid_subset_size=200,
          verbose=False,
      ).values()
  )
  np.testing.assert_allclose(found, theirs(torch.float64), rtol=1e-6)
  np.testing.assert_allclose(found, theirs(torch.float32), atol=1e-5)
