"""The command that scores: files, folders, runs, one JSON, told errors."""

import json
import signal
import subprocess
import sys

import golden_files
import jax
import multihost
import numpy as np
import PIL.Image
import pytest
import random_inception
import small_space

from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.evals import parts
from irepa_jax.evals import scores
from irepa_jax.evals import spaces
from irepa_jax.jobs import evaluate
from irepa_jax.jobs import sample
from irepa_jax.models import inception
from irepa_jax.weights import files

COUNT = 21
SCORES = ('fid', 'sfid', 'inception_score', 'precision', 'recall')


@pytest.fixture(scope='session')
def inception_path(tmp_path_factory):
  """Random weights of the real network, in a file."""
  path = tmp_path_factory.mktemp('inception') / 'inception.safetensors'
  shapes = golden_files.load('inception')['meta']['shapes']
  files.write_safetensors(path, random_inception.state_dict(shapes))
  return path


@pytest.fixture
def real(tmp_path):
  """A reference of 16x16 images."""
  np.savez(tmp_path / 'real.npz', small_space.images(40, 7, side=16))
  return str(tmp_path / 'real.npz')


def run(out, **flags):
  flags = dict(batch_size=16, out=str(out)) | flags
  assert evaluate.evaluate(**flags) == 0
  return json.loads(out.read_text())


def figures(found):
  return np.array([found[name] for name in SCORES])


def close(a, b, atol=1e-5):
  np.testing.assert_allclose(figures(a), figures(b), rtol=1e-5, atol=atol)


def test_the_network_of_fid_on_files_and_folders(inception_path, tmp_path):
  """Through the real Inception: as its features and scores, called by hand."""
  fake = small_space.images(12, 1, side=16, high=200)
  real = small_space.images(14, 2, side=16)
  np.savez(tmp_path / 'fake.npz', fake)
  for i, image in enumerate(real):
    (tmp_path / 'real').mkdir(exist_ok=True)
    PIL.Image.fromarray(image).save(tmp_path / 'real' / f'{i:02d}.png')
  found = run(
      tmp_path / 'a.json',
      samples=str(tmp_path / 'fake.npz'),
      reference=str(tmp_path / 'real'),
      inception=str(inception_path),
      is_splits=2,
  )
  params = files.read(inception_path)
  apply = jax.jit(lambda p, x: inception.Inception().apply({'params': p}, x))
  params = spaces.inception_weights.from_torch(params)
  both = apply(params, np.concatenate([fake, real]))
  fit = lambda x: scores.statistics(
      scores.add(scores.no_moments(x.shape[1]), x)
  )
  frechet = lambda x: scores.fid(*fit(x[12:]), *fit(x[:12]))
  pool, spatial = np.asarray(both.pool), np.asarray(both.spatial)
  logits = np.asarray(both.unbiased)[:12]
  expected = [
      frechet(pool),
      frechet(spatial),
      scores.inception_score(logits, 2, shuffle_seed=2020),
      *scores.precision_recall(pool[12:], pool[:12]),
  ]
  # Batches of other sizes round differently: features agree to 2e-6.
  np.testing.assert_allclose(figures(found), expected, rtol=1e-4)
  sha256 = files.sha256(inception_path)
  assert found['settings']['weights_sha256'] == {'inception': sha256}
  assert found['samples']['count'] == 12 and found['reference']['count'] == 14

  fake = str(tmp_path / 'fake.npz')
  flags = dict(samples=fake, reference=fake, inception=str(inception_path))
  itself = run(tmp_path / 'b.json', **flags)
  assert abs(itself['fid']) < 1e-6 and abs(itself['sfid']) < 1e-6


def test_a_run_scores_as_the_file_of_its_samples(
    small, run_directory, real, tmp_path
):
  settings = dict(seed=3, labels='random')
  code = sample.sample(
      run_directory, out=str(tmp_path / 's'), count=COUNT, batch_size=16, **settings
  )  # fmt: skip
  assert code == 0
  common = dict(reference=real)
  file = run(tmp_path / 'a.json', samples=str(tmp_path / 's.npz'), **common)
  whole = run(
      tmp_path / 'b.json',
      workdir=run_directory,
      count=COUNT,
      settings=settings,
      **common,
  )
  close(file, whole)
  told = whole['samples']
  assert told.items() >= {
      'seed': 3, 'labels': 'random', 'count': COUNT, 'step': 2, 'ema': 0.5,
      'ema_index': 0, 'sampler': 'heun', 'sample_steps': 3, 'guidance': 1.0,
      'guidance_low': 0.0, 'guidance_high': 1.0, 'quantise': 'round',
      'resolution': [16, 16],
  }.items()  # fmt: skip
  # What tools.sample has written beside its npz is told as well.
  assert {k: file['samples'][k] for k in told} == told
  assert not list(tmp_path.glob('*.parts'))


def test_statistics_alone_give_the_distances_of_the_images(
    small, real, tmp_path
):
  fake = tmp_path / 'fake.npz'
  np.savez(fake, small_space.images(30, 1, side=16))
  images = run(tmp_path / 'a.json', samples=str(fake), reference=real)
  for rows in (10_000, 0):
    stored = str(tmp_path / f'stored{rows}.npz')
    flags = dict(reference=real, batch_size=16)
    code = evaluate.evaluate(
        write_reference=stored, reference_rows=rows, **flags
    )
    assert code == 0
    found = run(tmp_path / 'b.json', samples=str(fake), reference=stored)
    assert found['fid'] == images['fid'] and found['sfid'] == images['sfid']
    assert found.get('recall') == (images['recall'] if rows else None)
    assert found['reference']['count'] == 40
    assert found['reference']['statistics'] == 'stored'
  assert 'no features' in found['left_out']['precision, recall, kid']


def test_other_networks_beside_or_without_inception(small, real, tmp_path):
  fake = tmp_path / 'fake.npz'
  np.savez(fake, small_space.images(30, 1, side=16))
  hog = 'hog-vit-g4_d128'
  common = dict(samples=str(fake), reference=real)
  both = run(tmp_path / 'a.json', spaces=['inception', hog], **common)
  assert {'fid', f'fd_{hog}'} <= set(both)
  assert both['settings']['weights_sha256'] == {'inception': '5' * 64, hog: ''}
  stored = str(tmp_path / 'stored.npz')
  evaluate.evaluate(reference=real, write_reference=stored, spaces=[hog])
  common['reference'] = stored
  alone = run(tmp_path / 'b.json', spaces=[hog], **common)
  assert 'fid' not in alone
  np.testing.assert_allclose(alone[f'fd_{hog}'], both[f'fd_{hog}'], rtol=1e-4)


def test_a_set_against_itself(small, real, tmp_path):
  found = run(tmp_path / 'a.json', samples=real, reference=real)
  assert abs(found['fid']) < 1e-6 and abs(found['sfid']) < 1e-6
  assert found['precision'] == found['recall'] == 1


def test_a_result_that_is_there_is_not_made_again(
    small, run_directory, real, capsys, monkeypatch
):
  flags = dict(workdir=run_directory, reference=real, count=18, batch_size=16)
  folder = run_directory / 'evaluations'
  evaluate.evaluate(**flags)
  (first,) = folder.glob('0000002-18-*.json')
  before = first.read_text()
  evaluate.evaluate(**flags, settings={'guidance': 2.0})
  assert len(list(folder.glob('0000002-18-*.json'))) == 2
  monkeypatch.setattr(sample, 'fill', lambda *_, **__: pytest.fail('samples'))
  evaluate.evaluate(**flags)
  assert first.read_text() == before
  assert 'is there already' in capsys.readouterr().out


KILLED = """
import sys
import jax
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_default_matmul_precision', 'highest')
sys.path.insert(0, 'tests')
import os, signal
import small_space
from irepa_jax import cli
from irepa_jax.evals import parts, spaces
from irepa_jax.tools import evaluate
spaces.inception_file = lambda source: None
spaces.inception = lambda source, mesh: small_space.space()
write = parts.write
def stop(folder, part):
  write(folder, part)
  os.kill(os.getpid(), int(os.environ['SIGNAL']))
if 'SIGNAL' in os.environ:
  parts.write = stop
evaluate.define_flags()
cli.run(evaluate.main)
"""


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_command_continues(
    small, run_directory, real, tmp_path, number
):
  out = tmp_path / 'a.json'
  words = [
      f'--workdir={run_directory}', f'--reference={real}', '--count=21',
      '--batch_size=8', f'--out={out}',
  ]  # fmt: skip
  command = [sys.executable, '-c', KILLED, *words]
  code = subprocess.run(
      command, env=multihost.os.environ | {'SIGNAL': str(int(number))}
  ).returncode
  assert code == (-9 if number == signal.SIGKILL else preemption.EXIT_STATUS)
  left = parts.missing(tmp_path / 'a.parts', COUNT)
  assert 0 < len(left) < COUNT and not out.exists()
  flags = dict(workdir=run_directory, reference=real, count=COUNT, batch_size=8)
  continued = run(out, **flags)
  assert not (tmp_path / 'a.parts').exists()
  assert (
      figures(continued).tolist()
      == figures(run(tmp_path / 'b.json', **flags)).tolist()
  )


TWO = """
import pathlib, sys
import small_space
from irepa_jax.evals import spaces
from irepa_jax.jobs import evaluate
spaces.inception_file = lambda source: None
spaces.inception = lambda source, mesh: small_space.space()
pathlib.Path(arguments['folder']).mkdir(exist_ok=True)
for name, flags in arguments['commands'].items():
  out = arguments['folder'] + '/' + name + '.json'
  result(code=evaluate.evaluate(out=out, batch_size=16, **flags))
"""


def test_two_processes_give_the_scores_of_one(
    small, run_directory, real, tmp_path
):
  np.savez(tmp_path / 'fake.npz', small_space.images(30, 1, side=16))
  common = dict(reference=real)
  commands = {
      'file': dict(samples=str(tmp_path / 'fake.npz'), **common),
      'run': dict(workdir=str(run_directory), count=COUNT, **common),
  }
  folder = tmp_path / 'two'
  results = multihost.run(TWO, commands=commands, folder=str(folder))
  assert [[line['code'] for line in lines] for lines in results] == [[0, 0]] * 2
  for name, flags in commands.items():
    two = json.loads((folder / f'{name}.json').read_text())
    one = run(tmp_path / f'{name}.json', **flags)
    # Of a run some grey levels round differently on another mesh.
    close(one, two, atol=1e-5 if name == 'file' else 1e-3)
    assert one['settings'] == two['settings']
    assert two['made']['processes'] == 2


def npz(path, pixels):
  np.savez(path, pixels)
  return str(path)


BAD = [
    ({}, errors.UsageError, '--samples=FILE.npz or a folder'),
    (dict(samples='S', workdir='w'), errors.UsageError, 'not both'),
    (dict(workdir='/nowhere'), errors.CheckpointError, 'not a run'),
    (dict(samples='/nowhere'), errors.DataError, 'nothing there'),
    (dict(samples='RUN'), errors.UsageError, 'is a run directory: --workdir'),
    (dict(samples='S', reference='O'), errors.DataError, 'of one size'),
    (dict(samples='S', reference='/no.npz'), errors.DataError, 'not found'),
    (dict(samples='F', reference='S'), errors.DataError, 'float32'),
    (dict(samples='1', reference='S'), errors.DataError, 'at least 2 images'),
    (dict(samples='a.npz', out='a.json'), errors.UsageError, 'would replace'),
    (dict(write_reference='r.npz'), errors.UsageError, 'needs --reference'),
    (dict(write_reference='r', reference='S'), errors.UsageError, '.npz'),
    (dict(workdir='RUN', count=1), errors.UsageError, 'count is 1'),
    (dict(samples='S', batch_size=0), errors.UsageError, 'batch_size 0'),
    (dict(samples='S', is_splits=-1), errors.UsageError, 'is_splits -1'),
    (dict(samples='S', spaces=('dinov9',)), errors.UsageError, 'dinov9'),
    (dict(samples='S', is_splits=99), errors.UsageError, '99 splits'),
]  # fmt: skip


@pytest.mark.parametrize('flags, error, said', BAD, ids=lambda x: str(x)[:40])
def test_bad_input_is_told_in_one_line(
    small, run_directory, tmp_path, flags, error, said
):
  places = {
      'RUN': str(run_directory),
      'S': npz(tmp_path / 's.npz', small_space.images(8, side=16)),
      'O': npz(tmp_path / 'o.npz', small_space.images(8, side=32)),
      'F': npz(tmp_path / 'f.npz', np.zeros((8, 16, 16, 3), 'f')),
      '1': npz(tmp_path / '1.npz', small_space.images(1, side=16)),
  }
  flags = {k: places.get(v, v) for k, v in flags.items()}
  with pytest.raises(error, match=said) as raised:
    evaluate.evaluate(**flags)
  assert '\n' not in str(raised.value)


def test_missing_weights_are_told_before_anything(run_directory, real):
  with pytest.raises(errors.DataError, match='--inception=PATH'):
    evaluate.evaluate(
        workdir=run_directory, reference=real, inception='/no/weights.pth'
    )


def test_the_command_line(tmp_path, inception_path):
  """As a user types it: help, an unknown flag, and the status of an error."""
  command = [sys.executable, '-m', 'irepa_jax.tools.evaluate']
  status = lambda *words: subprocess.run(
      [*command, *words], capture_output=True, text=True, cwd=multihost.ROOT
  )
  told = status('--samples=/none.npz', f'--inception={inception_path}')
  assert told.returncode == 3 and told.stderr.count('\n') == 1
  assert told.stderr.startswith('ERROR: /none.npz not found')
  told = status(f'--samples={tmp_path}', '--guidance=2')
  assert told.returncode == 2 and '--guidance is for a run' in told.stderr
