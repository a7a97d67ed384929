"""Compiles anew inside a context, so that the compiler says what it has to."""

import contextlib

import jax


@contextlib.contextmanager
def uncached():
  """Neither reads nor writes compiled programs."""
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
