"""docs/encoders.md is in step with the table, and its example runs."""

import pathlib
import re

import jax
import numpy as np

from irepa_jax import encoders
from irepa_jax.weights import convert
from irepa_jax.weights import files

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'encoders.md'
REPEAT = 'python -m irepa_jax.tools.weights encoder all --markdown'


def test_table_is_that_of_the_registry():
  wanted = encoders.table_markdown()
  pipes = wanted[0].count('|')
  lines = PAGE.read_text().splitlines()
  assert [row for row in lines if row.count('|') == pipes] == wanted, REPEAT


def test_example_of_own_encoders_runs(tmp_path, monkeypatch):
  pattern = r'```python\n(# my_encoders.py\n.*?)```'
  code = re.search(pattern, PAGE.read_text(), re.S)
  (tmp_path / 'my_encoders.py').write_text(code[1])
  monkeypatch.syspath_prepend(tmp_path)
  images = np.full((1, 32, 32, 3), 7, np.uint8)

  encoder = encoders.create('my_encoders:mean_colour', resolution=32)
  tokens = encoder.encode(encoder.load(), images)
  np.testing.assert_array_equal(tokens, np.full((1, 4, 3), 7, np.float32))

  encoder = encoders.create('my_encoders:SMALL', resolution=32)
  params = jax.jit(encoder.init)(jax.random.key(0))
  path = tmp_path / 'small.safetensors'
  files.write_safetensors(path, convert.to_torch(encoder.module, params))
  tokens = jax.jit(encoder.encode)(encoder.load(path), images)
  wanted = jax.jit(encoder.encode)(params, images)
  np.testing.assert_array_equal(tokens, wanted)
  assert tokens.shape == (1, 4, 64)
