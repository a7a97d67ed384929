"""The command line of the linear probe."""

import json

import numpy as np
import PIL.Image
import pytest

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.distributed import sharding
from irepa_jax.evals import probe as probes
from irepa_jax.jobs import probe
from irepa_jax.jobs import run_tokens
from irepa_jax.jobs import saved_run

HOG = 'hog-vit-g4_d128'


def run(data='digits', **settings):
  settings = dict(image_size=16, fit=probes.ridge) | settings
  return list(probe.accuracies(data, **settings))


def test_hog_reads_digits_far_better_than_chance():
  (found,) = run(encoders=[HOG], held_out=0.25)
  assert found['tokens'] == HOG and found['test_images'] == 449
  assert found['top1'] > 0.9 and 'top5' not in found


def test_every_block_and_time_of_a_run(run_directory):
  opened = saved_run.open_(run_directory)
  places = run_tokens.places(['1', '4'], ['0', '0.9'])
  rows = run(
      opened.data, runs=[run_directory], places=places, held_out=0.3, image_size=0
  )
  name = opened.name
  assert [r['tokens'] for r in rows] == [
      f'{name} block 1 t 0', f'{name} block 1 t 0.9',
      f'{name} block 4 t 0', f'{name} block 4 t 0.9',
  ]  # fmt: skip
  top = [r['top1'] for r in rows]
  # The data is readable through a model that has hardly trained, noise is not.
  assert min(top[0], top[2]) > 0.35 and max(top[1], top[3]) < 0.2


def test_a_run_is_not_shown_the_labels(run_directory):
  opened, mesh = saved_run.open_(run_directory), sharding.make_mesh()
  pictures = inputs.open_pictures(opened.data, 16, 8)
  _, load = run_tokens.candidate(opened, mesh, pictures, 4, 0.5)
  encode, batches = probe.tokens('run', load(), pictures, 8)
  (batch,) = batches
  assert (batch.label >= 0).all()
  other = batch._replace(label=batch.label[::-1].copy())
  assert (batch.label != other.label).any()
  np.testing.assert_array_equal(encode(batch), encode(other))


def test_images_of_their_own_to_test_on(tmp_path):
  rng = np.random.default_rng(0)
  for part, count in (('train', 12), ('val', 6)):
    for label, grey in (('dark', 60), ('light', 190)):
      folder = tmp_path / part / label
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.normal(grey, 9, (16, 16, 3)).astype(np.uint8)
        pixels[: 4 + 8 * (label == 'dark')] //= 2
        PIL.Image.fromarray(pixels).save(folder / f'{i}.png')
  (found,) = run(
      f'folder:{tmp_path / "train"}',
      test=f'folder:{tmp_path / "val"}',
      encoders=[HOG],
  )
  assert (found['train_images'], found['test_images']) == (24, 12)
  assert found['top1'] == 1


def test_the_command_prints_a_line_and_writes_json(tmp_path, capsys):
  import subprocess
  import sys

  out = tmp_path / 'a/probe.json'
  done = subprocess.run(
      [
          sys.executable, '-m', 'irepa_jax.tools.probe', '--data=digits',
          '--image_size=16', f'--encoders={HOG}', '--limit=400',
          '--method=adam', '--epochs=200', f'--out={out}',
      ],
      check=True, capture_output=True, text=True,
  )  # fmt: skip
  assert f'{HOG}: top1 0.' in done.stdout
  found = json.loads(out.read_text())
  assert found['settings']['method'] == 'adam'
  assert found['settings']['epochs'] == 200
  assert found['probes'][0]['top1'] > 0.7


@pytest.mark.parametrize(
    'settings, error, line',
    [
        ({}, errors.UsageError, 'name --encoders or --runs'),
        ({'data': 'sklearn:photos', 'encoders': [HOG]}, errors.DataError, 'no label'),
        ({'runs': ['/nowhere']}, errors.CheckpointError, 'not a run'),
        ({'encoders': ['dino9']}, errors.UsageError, 'dino9'),
    ],
)
def test_bad_input_gets_one_line(settings, error, line):
  with pytest.raises(error, match=line):
    run(**settings)


def test_blocks_that_are_no_numbers():
  with pytest.raises(errors.UsageError, match='--blocks and --times'):
    run_tokens.places(['a'], ['0.5'])
