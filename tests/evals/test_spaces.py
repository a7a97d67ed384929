"""The Inception space: names, widths, and the network behind them."""

import jax
import numpy as np
import pytest
import random_inception

from irepa_jax import errors
from irepa_jax import sharding
from irepa_jax import weights
from irepa_jax.evals import spaces

WIDTHS = {'pool': 2048, 'spatial': 2023, 'logits': 1008}


def test_features_over_a_mesh_equal_those_of_the_golden(golden, tmp_path):
  oracle = golden('inception')
  path = tmp_path / 'inception.safetensors'
  tensors = random_inception.state_dict(oracle['meta']['shapes'])
  weights.write_safetensors(path, tensors)
  mesh = sharding.make_mesh(4, allow_subset=True)
  space = spaces.inception(path, mesh=mesh)
  assert space.sha256 == weights.sha256(path) and space.name == 'inception'
  image = np.repeat(random_inception.images()[0], 4, axis=0)
  rows = sharding.put(image, sharding.batch_sharding(mesh))
  found = jax.device_get(space.extract(rows))
  assert {k: v.shape for k, v in found.items()} == {
      name: (4, width) for name, width in WIDTHS.items()
  }
  for name, key in [('pool',) * 2, ('spatial',) * 2, ('logits', 'unbiased')]:
    expected = oracle[key][:1]
    error = np.abs(found[name] - expected).max()
    assert error <= 1e-5 * np.abs(expected).max(), name


def test_missing_weights_say_where_to_get_them_and_the_flag(tmp_path):
  with pytest.raises(errors.DataError, match='published.*--inception=PATH'):
    spaces.inception_file(str(tmp_path / 'none.pth'))
