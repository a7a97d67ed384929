"""Sampling from a run directory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.jobs import sample
from irepa_jax.jobs import saved_run

COUNT = 21


def run(workdir, out, **changes):
  return sample.sample(
      workdir, **({'out': str(out), 'count': COUNT, 'batch_size': 16} | changes)
  )


def images(out):
  with np.load(f'{out}.npz') as file:
    return file['arr_0'], file['arr_1']


def test_writes_the_file_of_the_evaluation_suite(run_directory, tmp_path):
  out = tmp_path / 'a'
  assert run(run_directory, out, png_folder=str(tmp_path / 'png')) == 0
  made, labels = images(out)
  assert made.shape == (COUNT, 16, 16, 3) and made.dtype == np.uint8
  np.testing.assert_array_equal(labels, np.arange(COUNT) % 10)
  assert len(list((tmp_path / 'png').glob('*.png'))) == COUNT
  told = json.loads((tmp_path / 'a.json').read_text())
  assert told['count'] == COUNT and told['step'] == 2 and told['ema'] == 0.5
  assert (tmp_path / 'a.png').exists() and not (tmp_path / 'a.parts').exists()


def test_other_batches_and_a_continued_job_give_the_same_images(
    run_directory, tmp_path
):
  run(run_directory, tmp_path / 'a')
  run(run_directory, tmp_path / 'b', batch_size=8)
  # Rows of a batch of another size round differently: one grey level at most.
  a, b = (images(tmp_path / name)[0].astype(int) for name in 'ab')
  assert np.abs(a - b).max() <= 1
  run(run_directory, tmp_path / 'c', seed=1)
  assert np.abs(a - images(tmp_path / 'c')[0]).max() > 1


def test_another_average_is_another_model(run_directory, tmp_path):
  run(run_directory, tmp_path / 'b', ema=1, count=8)
  assert json.loads((tmp_path / 'b.json').read_text())['ema'] == 0.9


DEVICES = """
import sys
import jax
jax.config.update('jax_num_cpu_devices', {devices})
jax.config.update('jax_default_matmul_precision', 'highest')
from irepa_jax import cli
from irepa_jax.tools import sample
sample.define_flags()
cli.run(sample.main)
"""


@pytest.mark.parametrize('devices', [1, 4])
def test_devices_do_not_matter(run_directory, tmp_path, devices):
  """Here 8 devices, there one or four, in a process of its own."""
  run(run_directory, tmp_path / 'here')
  subprocess.run(
      [
          sys.executable, '-c', DEVICES.format(devices=devices),
          f'--workdir={run_directory}', f'--out={tmp_path / "there.npz"}',
          f'--count={COUNT}', '--batch_size=16',
      ],
      check=True,
  )  # fmt: skip
  here, there = (images(tmp_path / n)[0].astype(int) for n in ('here', 'there'))
  assert np.abs(here - there).max() <= 1  # rounding, at most a grey level


@pytest.mark.parametrize(
    'changes, error, message',
    [
        ({'guidance': 0.5}, errors.UsageError, 'guidance is 0.5'),
        ({'guidance_low': 0.9, 'guidance_high': 0.1}, errors.UsageError, 'low'),
        ({'sample_steps': 0}, errors.UsageError, 'sample_steps is 0'),
        ({'sampler': 'dopri'}, errors.UsageError, 'sampler'),
        ({'ema': 2}, errors.UsageError, 'ema is 2; the run has 2'),
        ({'step': 7}, errors.CheckpointError, 'no step 7'),
        ({'count': 0}, errors.UsageError, 'count is 0'),
        ({'workdir': '/nowhere'}, errors.CheckpointError, 'not a run'),
    ],
)
def test_bad_settings_are_told(
    run_directory, tmp_path, changes, error, message
):
  with pytest.raises(error, match=message):
    changes = {'workdir': run_directory} | changes
    run(out=tmp_path / 'x', **changes)


def test_an_autoencoder_with_other_weights_is_refused(
    run_directory, monkeypatch
):
  opened = saved_run.open_(run_directory)
  monkeypatch.setattr(
      type(opened.built.autoencoder), 'fetch', lambda *_: __file__
  )
  meta = {'autoencoder': 'haar', 'autoencoder_sha256': 'abc'}
  with pytest.raises(errors.CheckpointError, match='sha256 abc'):
    saved_run.load_decoder(opened, None, meta)


@pytest.mark.parametrize(
    'changes', [{'guidance': 2.0}, {'seed': 3}, {'sampler': 'euler'}, {'ema': 1}]
)
def test_finished_images_do_not_give_way_to_others(
    run_directory, tmp_path, changes, monkeypatch
):
  settings = dict(count=2, batch_size=8)
  told = sample.described(
      saved_run.open_(run_directory),
      sample.Loaded(None, {'step': 2, 'autoencoder_sha256': ''}, 0),
  )
  (tmp_path / 'a.npz').write_bytes(b'finished')
  (tmp_path / 'a.json').write_text(json.dumps(told | {'count': 2}))
  made = []
  monkeypatch.setattr(sample, 'fill', lambda *_, **__: made.append(1))
  name = next(iter(changes))
  with pytest.raises(errors.UsageError, match=f'a.npz is there .*{name}.*--over'):
    run(run_directory, tmp_path / 'a', **settings, **changes)
  run(run_directory, tmp_path / 'a', **settings)  # the same ones again
  run(run_directory, tmp_path / 'a', overwrite=True, **settings, **changes)
  assert len(made) == 2


@pytest.mark.parametrize('text', ['', '[]', '{"count": 2'])
def test_images_of_unknown_settings_stay(run_directory, tmp_path, text):
  (tmp_path / 'a.npz').write_bytes(b'finished')
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(errors.UsageError, match='a.npz is there already'):
    run(run_directory, tmp_path / 'a', count=2)
  assert (tmp_path / 'a.npz').read_bytes() == b'finished'


@pytest.mark.parametrize('place', ['/dev/null/x', 'file/x', '/proc/x/y'])
def test_outputs_are_tried_before_the_work(
    run_directory, tmp_path, place, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  monkeypatch.setattr(sample, 'load', lambda *_, **__: pytest.fail('loaded'))
  for out in ({'out': place}, {'png_folder': place, 'out': 'a'}):
    with pytest.raises(errors.UsageError, match='cannot be written'):
      sample.sample(run_directory, count=2, **out)
