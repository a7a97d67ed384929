"""Colours under an autoencoder of brightness, and an interrupt."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from irepa_jax.data import manifest as manifests
from irepa_jax.jobs import prepare

ROOT = pathlib.Path(__file__).parents[2]


def photos(root, kinds, side=16):
  draw = np.random.default_rng(0)
  (root / 'a').mkdir(parents=True)
  for i, kind in enumerate(kinds):
    shape = (side, side, 3 if kind == 'colour' else 1)
    pixels = draw.integers(0, 256, shape, np.uint8)
    pixels = np.broadcast_to(pixels, (side, side, 3))
    PIL.Image.fromarray(pixels).save(root / 'a' / f'{i}.png')


@pytest.mark.parametrize(
    'kinds, autoencoder, count',
    [
        (['colour'] * 3, 'haar', 3),
        (['grey', 'colour', 'grey'], 'haar', 1),
        (['grey'] * 3, 'haar', 0),
        (['colour'] * 3, 'none', 0),
    ],
)
def test_what_haar_drops_is_counted_and_told(
    tmp_path, kinds, autoencoder, count
):
  photos(tmp_path / 'in', kinds)
  said = []
  made = prepare.prepare(
      f'folder:{tmp_path / "in"}', tmp_path / 'out', image_size=16,
      autoencoder=autoencoder, say=said.append,
  )  # fmt: skip
  assert made.coloured == manifests.read(tmp_path / 'out').coloured == count
  told = [line for line in said if 'drop_colours' in line]
  assert len(told) == bool(count)


def test_an_interrupt_says_how_to_go_on(tmp_path):
  photos(tmp_path / 'in', ['grey'] * 400, side=160)
  process = subprocess.Popen(
      [
          sys.executable, '-m', 'irepa_jax.tools.prepare',
          f'--source=folder:{tmp_path / "in"}', f'--out={tmp_path / "out"}',
          '--image_size=16', '--autoencoder=haar', '--shard_size=1',
          '--batch_size=1', '--threads=1',
      ],
      env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL,
  )  # fmt: skip
  while process.poll() is None and not list(tmp_path.glob('out/data-*.json')):
    time.sleep(0.02)
  process.send_signal(signal.SIGINT)
  _, told = process.communicate(timeout=120)
  assert process.returncode == 75, told
  assert 'the same command goes on with the others' in told
