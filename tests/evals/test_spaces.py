"""The Inception space: names, widths, and the network behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_inception

from irepa_jax import errors
from irepa_jax.distributed import sharding
from irepa_jax.evals import spaces
from irepa_jax.weights import files

WIDTHS = {'pool': 2048, 'spatial': 2023, 'logits': 1008}


def test_features_over_a_mesh_equal_those_of_the_golden(golden, tmp_path):
  oracle = golden('inception')
  path = tmp_path / 'inception.safetensors'
  tensors = random_inception.state_dict(oracle['meta']['shapes'])
  files.write_safetensors(path, tensors)
  mesh = sharding.make_mesh(4, allow_subset=True)
  space = spaces.inception(path, mesh=mesh)
  assert space.sha256 == files.sha256(path) and space.name == 'inception'
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


@pytest.mark.parametrize('devices', [None, 1, 4])
@pytest.mark.parametrize('count', [32, 80, 132])
def test_chunks_change_nothing(devices, count):
  """Images side by side, whatever the chunks; rows of padding are cut off."""
  rng = np.random.RandomState(count)
  images = rng.randint(0, 256, (count, 2, 2, 3)).astype(np.uint8)
  kernel = rng.standard_normal((12, 5)).astype(np.float32)

  def features(params, x):
    assert len(x) <= spaces.CHUNK
    rows = x.reshape(len(x), -1).astype(jnp.float32)
    return {'pool': jnp.matmul(rows, params, precision='highest')}

  mesh = devices and sharding.make_mesh(devices, allow_subset=True)
  if mesh:
    placed = sharding.put(images, sharding.batch_sharding(mesh))
  else:
    placed = images
  found = spaces.by_chunks(features, mesh)(spaces.place(kernel, mesh), placed)
  expected = images.reshape(count, -1) @ kernel
  np.testing.assert_allclose(found['pool'], expected, rtol=1e-5, atol=1e-3)
