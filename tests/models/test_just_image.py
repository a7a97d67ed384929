"""JiT against PyTorch outputs, official names and counts, and its variants."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jit

from irepa_jax import errors
from irepa_jax import models
from irepa_jax.models import flops
from irepa_jax.models import fused
from irepa_jax.models import just_image
from irepa_jax.models import layers
from irepa_jax.weights import convert

NAMES = [f'JiT-{size}/{p}' for size in ('B', 'L', 'H') for p in (16, 32)]
TOLERANCE = dict(atol=3e-5, rtol=1e-4)  # golden outputs are of size 3
ORACLE = golden_files.load('jit_forward')
CASES = ORACLE['meta']['args']


@pytest.mark.parametrize('case', CASES)
def test_images_and_tokens_as_torch(case):
  """The tap lies before and after the class tokens joined."""
  model, projector, params = tiny_jit.build(ORACLE, case)
  x, tokens = jax.jit(tiny_jit.network(model, params))(*inputs())
  np.testing.assert_allclose(x, tiny_jit.last(ORACLE['x_pred']), **TOLERANCE)
  stored = golden_files.subset(ORACLE, f'case/{case}')
  np.testing.assert_allclose(tokens, stored['zs_original'], **TOLERANCE)
  (projected,) = projector.apply({'params': params['projector']}, tokens)
  np.testing.assert_allclose(projected, stored['zs/0'], **TOLERANCE)


def inputs():
  x = tiny_jit.last(ORACLE['x'])
  return x, 1 - jnp.asarray(ORACLE['t']), jnp.asarray(ORACLE['y'], jnp.int32)
