"""A data set that contradicts an experiment is refused in one clear line."""

import dataclasses
import json

import data_sets
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.data import manifest as manifests


@pytest.fixture
def manifest(tmp_path):
  return data_sets.write(tmp_path / 'd', count=20)


FITS = dict(
    image_size=8,
    num_classes=10,
    autoencoder='tiny',
    autoencoder_sha256='a' * 64,
    latent_shape=(4, 4, 2),
    encoders=[('enc', 'b' * 64)],
    cached=True,
    images_needed=True,
    flips=True,
)


def scaled(manifest, factor=1.0):
  scale = [factor * value for value in manifest.scale]
  return dict(FITS, bias=manifest.bias, scale=scale)


def test_a_manifest_comes_back(tmp_path, manifest):
  assert manifests.read(tmp_path / 'd') == manifest


def test_what_fits_passes(manifest):
  manifests.check(manifest, **scaled(manifest))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(image_size=16), 'images are 8 pixels wide; the config wants image_size=16'),
        (dict(num_classes=9), r'labels span 0\.\.9; the config has num_classes=9'),
        (dict(num_classes=11), 'has 10 classes; the config has num_classes=11'),
        (dict(autoencoder='haar'), "made by autoencoder 'tiny'; the config has 'haar'"),
        (dict(autoencoder_sha256='c' * 64), 'sha256 aaaaaaaaaaaaaaaa; the config loads cccc'),
        (dict(latent_shape=(4, 4, 4)), r"latents are \(4, 4, 2\) of 'tiny' at 8 pixels"),
        (dict(encoders=[('x', '')]), r"cached features are of \['enc'\]; the config wants"),
        (dict(encoders=[('enc', 'c' * 64)]), "features of 'enc' come from weights with"),
    ],
)
def test_contradictions_are_refused(manifest, change, message):
  with pytest.raises(errors.DataError, match=message):
    manifests.check(manifest, **{**scaled(manifest), **change})


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(image_format='none'), 'the records hold no images'),
        (dict(label_range=(-1, 9)), r'labels span -1\.\.9'),
        (dict(label_range=(0, 10)), r'labels span 0\.\.10'),
        (dict(moments_shape=()), 'the records hold no latents'),
        (dict(encoders=()), 'cached features are of no encoder'),
        (dict(flips=()), 'no mirrored latents'),
    ],
)
def test_data_that_lack_something_are_refused(manifest, change, message):
  lacking = dataclasses.replace(manifest, **change)
  with pytest.raises(errors.DataError, match=message):
    manifests.check(lacking, **scaled(manifest))


@pytest.mark.parametrize('factor', [0.0, 0.18215, 4.6])
def test_latents_that_would_not_have_unit_scale_are_refused(manifest, factor):
  message = r'standard deviation \[.*\] and mean .* per channel, not near 1 and 0'
  with pytest.raises(errors.DataError, match=message):
    manifests.check(manifest, **scaled(manifest, factor))
  with pytest.raises(errors.DataError, match='mean'):
    far = np.array(manifest.bias) + 5
    manifests.check(manifest, bias=far, scale=manifest.scale)


@pytest.mark.parametrize('count', [1, 7, 50])
def test_dropped_colours_have_to_be_wanted(manifest, count):
  coloured = dataclasses.replace(manifest, coloured=count)
  with pytest.raises(errors.DataError, match=f'{count} of .* images have colours'):
    manifests.check(coloured, drop_colours=False)
  manifests.check(coloured, drop_colours=True)
  manifests.check(manifest, drop_colours=False)


def test_unknown_hashes_are_not_compared(manifest):
  manifests.check(manifest, autoencoder='tiny', autoencoder_sha256='')
  unknown = dataclasses.replace(manifest, autoencoder_sha256='')
  manifests.check(unknown, autoencoder='tiny', autoencoder_sha256='c' * 64)


def test_images_alone_can_be_mirrored_without_records(manifest):
  pixels = dataclasses.replace(manifest, flips=(), moments_shape=(), encoders=())
  manifests.check_flips(pixels)


def test_moments_of_another_scale_are_refused(manifest):
  moments = np.stack([data_sets.moments(i) for i in range(20)])
  manifests.check_moments(manifest, moments)
  for wrong in (moments * 4.6, moments * 0.18215, moments * 0):
    with pytest.raises(errors.DataError, match='the manifest says'):
      manifests.check_moments(manifest, wrong)


def test_missing_and_foreign_folders_are_explained(tmp_path):
  cases = {'absent': 'not found', 'empty': 'found nothing', 'npy': 'found a.npy, b.npy'}
  for name in ('empty', 'npy', 'half'):
    (tmp_path / name).mkdir()
  for name in ('a.npy', 'b.npy'):
    (tmp_path / 'npy' / name).write_bytes(b'')
  (tmp_path / 'half/data-00000-of-00002.array_record').write_bytes(b'')
  cases['half'] = '1 shards but no manifest.json: the preparation is not finished'
  for name, message in cases.items():
    with pytest.raises(errors.DataError, match=message):
      manifests.read(tmp_path / name)


def test_damaged_manifests_are_named(tmp_path, manifest):
  path = tmp_path / 'd/manifest.json'
  whole = json.loads(path.read_bytes())
  for data, message in (
      (path.read_bytes()[:200], 'is no manifest'),
      (b'version https://git-lfs.github.com/spec/v1', 'git-lfs pointer'),
      (b'[]', 'is no manifest'),
      (json.dumps({**whole, 'version': 9}).encode(), 'has format 9'),
      (json.dumps({**whole, 'extra': 9}).encode(), 'extra'),
      (json.dumps({k: v for k, v in whole.items() if k != 'count'}).encode(), 'count'),
      (json.dumps({k: v for k, v in whole.items() if k != 'shards'}).encode(), 'shards'),
  ):
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match=message):
      manifests.read(tmp_path / 'd')
