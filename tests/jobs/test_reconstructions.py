"""Scores of an autoencoder on real images."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import small_space

from irepa_jax import errors
from irepa_jax.evals import scores
from irepa_jax.jobs import evaluate
from irepa_jax.jobs import reconstructions
from irepa_jax.models import lpips
from irepa_jax.weights import convert
from irepa_jax.weights import files


def test_psnr_is_that_of_its_definition():
  real = jnp.zeros((2, 4, 4, 3))
  made = real.at[1].add(0.2)  # a tenth of the range
  values = reconstructions.psnr(real.at[0].add(2.0), made)
  np.testing.assert_allclose(values, [0.0, 20.0], atol=1e-4)


@pytest.fixture(scope='module')
def lpips_weights(tmp_path_factory):
  """Random weights of the real network, in its two files."""
  folder = tmp_path_factory.mktemp('lpips')
  shapes = convert.torch_shapes(lpips.LPIPS())
  draw = np.random.default_rng(0)
  entries = {
      k: draw.random(s, np.float32) / np.prod(s[1:] or (1,))
      for k, s in shapes.items()
  }
  heads = {k: v for k, v in entries.items() if k.startswith('lin')}
  files.write_safetensors(
      folder / 'vgg16.safetensors', {k: entries[k] for k in entries if k not in heads}
  )
  files.write_torch(folder / 'vgg.pth', heads)
  return f'{folder / "vgg16.safetensors"},{folder / "vgg.pth"}'


def test_grey_images_return_exactly_through_the_haar_transform(
    run_directory, lpips_weights, small, tmp_path
):
  grey = small_space.images(40, 3, side=16)
  grey = np.repeat(grey[..., :1], 3, axis=-1)
  np.savez(tmp_path / 'grey.npz', grey)
  out = tmp_path / 'a.json'
  assert evaluate.evaluate(
      workdir=str(run_directory),
      reference=str(tmp_path / 'grey.npz'),
      reconstructions=True,
      lpips_weights=lpips_weights,
      batch_size=16,
      out=str(out),
  ) == 0
  found = json.loads(out.read_text())
  assert found['psnr'] == pytest.approx(100)
  assert found['lpips'] < 1e-6 and abs(found['rfid']) < 1e-4
  assert found['samples']['count'] == 40


def test_colours_are_lost_and_scored_as_by_hand(
    run_directory, lpips_weights, small, tmp_path
):
  images = small_space.images(40, 4, side=16)
  np.savez(tmp_path / 'real.npz', images)
  out = tmp_path / 'a.json'
  evaluate.evaluate(
      workdir=str(run_directory),
      reference=str(tmp_path / 'real.npz'),
      reconstructions=True,
      lpips_weights=lpips_weights,
      batch_size=16,
      out=str(out),
  )
  found = json.loads(out.read_text())
  grey = np.round(images.mean(-1, keepdims=True) + np.zeros(3)).astype(np.uint8)
  features = small_space.space().extract
  fit = lambda x: scores.statistics(
      scores.add(
          scores.no_moments(small_space.WIDTHS['pool']),
          np.asarray(features(jnp.asarray(x))['pool']),
      )
  )
  expected = scores.fid(*fit(images), *fit(grey))
  # Halves round either way.
  np.testing.assert_allclose(found['rfid'], expected, rtol=0.05)
  error = np.square((images - grey.astype(float)) / 255).mean((1, 2, 3))
  np.testing.assert_allclose(
      found['psnr'], np.mean(-10 * np.log10(error)), rtol=1e-3
  )
  assert found['lpips'] > 0


def test_reconstructions_need_a_run_and_images():
  with pytest.raises(errors.UsageError, match='needs --workdir=RUN'):
    evaluate.evaluate(
        samples='a.npz', reference='b.npz', reconstructions=True
    )
