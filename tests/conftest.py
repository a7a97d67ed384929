"""Eight CPU devices, strict dtypes, and shape annotations that are checked."""

import os
import pathlib
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jaxtyping
import pytest

CHECKED = (
    'irepa_jax.alignment',
    'irepa_jax.diffusion',
    'irepa_jax.resize',
    'irepa_jax.evals.scores',
    'irepa_jax.analysis.spatial',
)
jaxtyping.install_import_hook(CHECKED, 'beartype.beartype')

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_default_matmul_precision', 'highest')
CACHE = pathlib.Path(tempfile.gettempdir()) / 'irepa_jax_test_cache'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(scope='module')
def fast_compile():
  """Compiles with few optimisations: a fifth of the time, the same numbers."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def golden():
  """Loads an oracle of tests/golden as a dict of arrays; meta is parsed."""
  import golden_files

  return golden_files.load


@pytest.fixture
def small(monkeypatch):
  """Puts a small network in the place of Inception."""
  import small_space

  from irepa_jax.evals import spaces

  monkeypatch.setattr(spaces, 'inception_file', lambda source: None)
  monkeypatch.setattr(
      spaces, 'inception', lambda source, mesh: small_space.space()
  )
