"""The command that scores, in the feature spaces of encoders."""

import functools
import json

import golden_files
import numpy as np
import pytest
import small_space

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.evals import encoder_spaces
from irepa_jax.evals import scores
from irepa_jax.jobs import evaluate
from irepa_jax.weights import files as weight_files

HOG = 'hog-vit-g4_d128'


@pytest.fixture
def files(tmp_path):
  """Samples and a reference of 16x16 images: paths and pixels."""
  fake = small_space.images(20, 1, side=16, high=200)
  real = small_space.images(24, 2, side=16)
  np.savez(tmp_path / 'fake.npz', fake)
  np.savez(tmp_path / 'real.npz', real)
  return str(tmp_path / 'fake.npz'), str(tmp_path / 'real.npz'), fake, real


def run(tmp_path, samples, reference, **flags):
  out = tmp_path / 'found.json'
  status = evaluate.evaluate(
      samples, reference=reference, out=str(out), batch_size=16, **flags
  )
  assert status == 0
  return json.loads(out.read_text())


def test_a_frechet_distance_in_the_space_of_an_encoder(files, tmp_path):
  samples, reference, fake, real = files
  found = run(tmp_path, samples, reference, spaces=[HOG])
  network = encoders.create(HOG, resolution=16)
  rows = lambda x: np.float64(network.encode({}, x)).mean(1)
  fit = lambda x: (x.mean(0), np.cov(x, rowvar=False))
  expected = scores.fid(*fit(rows(real)), *fit(rows(fake)))
  np.testing.assert_allclose(found[f'fd_{HOG}'], expected, rtol=1e-4)
  assert 'fid' not in found and 'inception_score' not in found
  assert found['settings']['weights_sha256'] == {HOG: ''}


@pytest.fixture
def tiny_clip(monkeypatch, tmp_path):
  """Puts a small CLIP in the place of ViT-L/14; returns its weight file."""
  tensors = golden_files.subset(golden_files.load('enc_clip'), 'sd')
  path = tmp_path / 'clip.safetensors'
  weight_files.write_safetensors(path, tensors)
  tiny = functools.partial(encoder_spaces.clip, depth=2, width=32, heads=2)
  monkeypatch.setitem(encoder_spaces.PUBLISHED, 'clip', tiny)
  return path


def test_cmmd_in_the_space_of_clip(files, tiny_clip, tmp_path):
  samples, reference, fake, real = files
  text = f'clip@{tiny_clip}'
  found = run(tmp_path, samples, reference, spaces=[text, HOG])
  space = encoder_spaces.open_(text)
  rows = lambda x: np.asarray(space.extract(x)['embedding'])
  np.testing.assert_allclose(
      found['cmmd'], scores.cmmd(rows(real), rows(fake)), rtol=1e-3
  )
  assert found['cmmd'] > 0 and f'fd_{HOG}' in found
  sha256 = weight_files.sha256(tiny_clip)
  assert found['settings']['weights_sha256'] == {'clip': sha256, HOG: ''}


def test_stored_statistics_serve_every_space(files, tiny_clip, tmp_path):
  samples, reference, _, _ = files
  spaces = [f'clip@{tiny_clip}', HOG]
  stored = str(tmp_path / 'stored.npz')
  direct = run(tmp_path, samples, reference, spaces=spaces)
  assert not evaluate.evaluate(
      reference=reference, write_reference=stored, spaces=spaces, batch_size=16
  )
  again = run(tmp_path, samples, stored, spaces=spaces)
  for name in ('cmmd', f'fd_{HOG}'):
    np.testing.assert_allclose(again[name], direct[name], rtol=1e-6)


@pytest.mark.parametrize(
    'spaces, message',
    [
        ([], 'names no network'),
        (['dino9'], "unknown encoder 'dino9'"),
        (['dinov2@nowhere.pth'], 'nowhere.pth'),
    ],
)
def test_spaces_that_do_not_exist(files, spaces, message, tmp_path):
  with pytest.raises((errors.UsageError, errors.DataError), match=message):
    run(tmp_path, *files[:2], spaces=spaces)


def test_an_encoder_needs_squares():
  with pytest.raises(errors.UsageError, match='square images'):
    encoder_spaces.open_(HOG, side=(16, 24))
