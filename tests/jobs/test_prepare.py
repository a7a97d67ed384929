"""Preparation: the right records, once, whatever happens in between."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import multihost
import numpy as np
import PIL.Image
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.data import sources
from irepa_jax.jobs import prepare as tool
from irepa_jax.weights import convert
from irepa_jax.weights import files

HOG = 'hog-vit-g4_d128'
DIGITS = dict(
    image_size=16,
    autoencoder='haar',
    image_format='png',
    max_images=100,
    shard_size=30,
    batch_size=2,
)


def prepare(source, out, **options):
  """Prepares quietly and returns (manifest, what was said)."""
  said = []
  manifest = tool.prepare(source, out, say=said.append, **options)
  return manifest, '\n'.join(said)


def names(folder):
  return sorted(os.listdir(folder))


def stamps(folder):
  """Identity and time of writing of each shard."""
  files = pathlib.Path(folder).glob('*.array_record')
  return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


# what is written ----------------------------------------------------------------


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  out = tmp_path_factory.mktemp('prepare') / 'digits'
  options = dict(DIGITS, flip=True, encoder=(HOG,), encoder_dtype='float32')
  return out, *prepare('digits', out, **options)


def test_records_hold_image_latents_and_features(digits):
  out, manifest, _ = digits
  dataset, source = pipeline.load(out), sources.create('digits')
  haar, hog = models.autoencoder('haar'), encoders.create(HOG, resolution=16)
  assert len(dataset) == 100
  for flip in (False, True):
    seen = [dataset.example(i, flip=flip) for i in range(100)]
    images = np.stack([source[i].image for i in range(100)])
    images = images[:, :, ::-1] if flip else images
    moments = np.asarray(haar.encode({}, images)).astype(np.float16)
    tokens = np.asarray(hog.encode({}, images).astype(jnp.bfloat16))
    for i, example in enumerate(seen):
      assert example['label'] == source[i].label
      np.testing.assert_array_equal(example['image'], images[i])
      np.testing.assert_allclose(example['moments'], moments[i], atol=1e-3)
      near = np.abs(np.float32(example['features'][0]) - np.float32(tokens[i]))
      assert near.max() < 5e-3  # one step of bfloat16 at 0.5
  assert manifest.encoders[0].shape == (16, 128)


def test_the_manifest_states_what_is_there(digits):
  out, manifest, _ = digits
  assert manifests.read(out) == manifest
  assert manifest.class_names == tuple('0123456789')
  assert manifest.label_range == (0, 9)
  assert [shard.count for shard in manifest.shards] == [30, 30, 30, 10]
  assert [shard.count for shard in manifest.flips] == [30, 30, 30, 10]
  for shard in (*manifest.shards, *manifest.flips):
    data = (out / shard.name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == shard.sha256
  dataset = pipeline.load(out, verify=True)
  moments = np.stack([dataset.example(i)['moments'] for i in range(100)])
  mean, std = np.split(np.float64(moments), 2, axis=-1)
  np.testing.assert_allclose(manifest.latent_mean, mean.mean((0, 1, 2)), atol=1e-9)
  np.testing.assert_allclose(manifest.latent_std, mean.std((0, 1, 2)), atol=1e-9)
  assert not std.any()
  assert manifest.bias == manifest.latent_mean
  np.testing.assert_allclose(manifest.scale, 1 / np.array(manifest.latent_std))
  latents = dict(latent_shape=(8, 8, 4), bias=manifest.bias, scale=manifest.scale)
  cached = dict(encoders=[(HOG, '')], cached=True, flips=True)
  manifests.check(manifest, image_size=16, num_classes=10, **latents, **cached)


def test_size_and_time_are_said_before_the_start(digits):
  _, manifest, said = digits
  first, second, last = said.split('\n')
  assert '100 of 100 images to write in 4 shards' in first
  assert 'a record, about ' in first and 'free' in first
  assert 'read' in second and 'encode' in second and 'compile' in second
  assert '100 records of 10 classes in 8 shards' in last


def test_posterior_noise_counts_in_the_statistics(tmp_path, monkeypatch):
  fake(monkeypatch, std=2.0)
  manifest, _ = prepare('digits', tmp_path / 'd', **DIGITS)
  dataset = pipeline.load(tmp_path / 'd')
  values = np.stack([dataset.example(i)['moments'][..., 0] for i in range(100)])
  expected = np.sqrt(np.float64(values).var() + 4)
  np.testing.assert_allclose(manifest.latent_std, expected, rtol=1e-6)


def test_images_alone(tmp_path):
  options = dict(DIGITS, autoencoder='none')
  manifest, _ = prepare('digits', tmp_path / 'd', **options)
  assert manifest.moments_shape == () and manifest.autoencoder == 'none'
  example = pipeline.load(tmp_path / 'd').example(7)
  assert set(example) == {'label', 'image'}


def test_latents_alone(tmp_path):
  options = dict(DIGITS, image_format='none')
  prepare('digits', tmp_path / 'd', **options)
  example = pipeline.load(tmp_path / 'd').example(7)
  assert set(example) == {'label', 'moments'}


def test_the_official_release_keeps_its_latents(tmp_path):
  rng = np.random.default_rng(0)
  moments = np.abs(rng.normal(size=(5, 8, 8, 8))).astype(np.float16)
  source = Precomputed(moments)
  options = dict(image_size=64, autoencoder='sd-vae-ft-mse', image_format='png')
  manifest, _ = prepare(source, tmp_path / 'd', **options)
  dataset = pipeline.load(tmp_path / 'd')
  for i in range(5):
    np.testing.assert_array_equal(dataset.example(i)['moments'], moments[i])
    assert dataset.example(i)['image'][0, 0, 0] == i
  assert manifest.scale == (0.18215,) * 4 and manifest.bias == (0.0,) * 4
  with pytest.raises(errors.UsageError, match='none of mirror images'):
    prepare(source, tmp_path / 'e', flip=True, **options)
  with pytest.raises(errors.DataError, match=r'at 32 pixels has \(4, 4, 8\)'):
    prepare(source, tmp_path / 'e', **(options | {'image_size': 32}))
  with pytest.raises(errors.DataError, match='log variances'):
    prepare(Precomputed(-moments), tmp_path / 'e', **options)


class Precomputed:
  """A source that brings its own moments."""

  class_names, fingerprint = (), 'test'
  has_images, has_moments = True, True

  def __init__(self, moments):
    self.moments = moments
    self.first_label = 0

  def name(self, i):
    return f'row {i}'

  def __len__(self):
    return len(self.moments)

  def __getitem__(self, i):
    pixels = np.full((64, 64, 3), i, np.uint8)
    return sources.Example(pixels, self.first_label + i, self.moments[i])


@dataclasses.dataclass(frozen=True)
class FakeCodec:
  """Moments: the mean grey value, and a number from the weight file."""

  std: float
  name: str = 'fake'
  factor: int = 16
  source: str = 'somewhere'
  bias: tuple | None = None
  scale: tuple | None = None
  grey: bool = False
  stored: bool = True

  def fetch(self, path):
    return pathlib.Path(path)

  def load(self, path):
    return {'std': np.float32(self.std)}

  def encode(self, params, images):
    grey = images.astype(jnp.float32).mean((1, 2, 3))[:, None, None, None] / 255
    return jnp.concatenate([grey, jnp.full_like(grey, params['std'])], -1)


def fake(monkeypatch, std=1.0):
  codec = FakeCodec(std, source=None)
  monkeypatch.setattr(tool.models, 'autoencoder', lambda name: codec)


def test_weights_are_known_by_their_hash(tmp_path, monkeypatch):
  monkeypatch.setattr(tool.models, 'autoencoder', lambda name: FakeCodec(1.0))
  (tmp_path / 'w').write_bytes(b'weights')
  options = dict(DIGITS, weights=str(tmp_path / 'w'))
  manifest, _ = prepare('digits', tmp_path / 'd', **options)
  assert manifest.autoencoder_sha256 == hashlib.sha256(b'weights').hexdigest()
  (tmp_path / 'w').write_bytes(b'others')
  with pytest.raises(errors.DataError, match='autoencoder='):
    prepare('digits', tmp_path / 'd', **options)


def test_statistics_of_the_release_can_be_given(tmp_path):
  statistics = {'latents_scale': np.full(4, 0.5), 'latents_bias': np.arange(4.0)}
  tensors = {k: v.astype(np.float32)[None, :, None, None] for k, v in statistics.items()}
  files.write_torch(tmp_path / 'stats.pt', tensors)
  options = dict(DIGITS, statistics=str(tmp_path / 'stats.pt'))
  manifest, _ = prepare('digits', tmp_path / 'd', **options)
  assert manifest.scale == (0.5,) * 4
  assert manifest.bias == (0.0, 1.0, 2.0, 3.0)
  with pytest.raises(errors.DataError, match='of 4 and 4 channels, not of 32'):
    prepare('digits', tmp_path / 'e', **(options | {'autoencoder': 'vae-f16d32'}))


def random_params(model):
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(size=leaf.shape, scale=0.1).astype(np.float32)
  return jax.tree.map(draw, convert.param_shapes(model.module))


def test_a_vae_and_an_encoder_from_weight_files(tmp_path, monkeypatch):
  small = dict(width=32, multipliers=(1,), blocks=1)
  vae = models.autoencoders.create('sd-vae-ft-mse', **small)
  vit = encoders.create('dinov2-vit-s', resolution=32, depth=2, width=32, heads=2)
  monkeypatch.setattr(tool.models, 'autoencoder', lambda name: vae)
  monkeypatch.setattr(tool.zoo, 'create', lambda name, **settings: vit)
  networks = {'vae': (vae, random_params(vae)), 'vit': (vit, random_params(vit))}
  for name, (model, params) in networks.items():
    arrays = convert.to_torch(model.module, params)
    files.write_safetensors(tmp_path / f'{name}.safetensors', arrays)
  prepare(
      'digits',
      tmp_path / 'd',
      image_size=32,
      image_format='png',
      max_images=20,
      weights=str(tmp_path / 'vae.safetensors'),
      encoder=('dinov2-vit-s',),
      encoder_weights=(str(tmp_path / 'vit.safetensors'),),
      flip=True,
      batch_size=1,
  )
  dataset = pipeline.load(tmp_path / 'd')
  encode = {k: jax.jit(model.encode) for k, (model, _) in networks.items()}
  for flip in (False, True):
    seen = [dataset.example(i, flip=flip) for i in range(20)]
    images = np.stack([example['image'] for example in seen])
    moments = np.stack([example['moments'] for example in seen])
    expected = encode['vae'](networks['vae'][1], images)
    np.testing.assert_allclose(np.float32(moments), expected, rtol=1e-3, atol=1e-3)
    tokens = np.stack([np.float32(example['features'][0]) for example in seen])
    expected = encode['vit'](networks['vit'][1], images)
    np.testing.assert_allclose(tokens, expected, rtol=2**-8, atol=1e-3)
  hashes = (dataset.manifest.autoencoder_sha256, dataset.manifest.encoders[0].sha256)
  assert hashes == tuple(
      files.sha256(tmp_path / f'{name}.safetensors') for name in networks
  )


def test_latents_that_are_not_finite_are_refused(tmp_path, monkeypatch):
  fake(monkeypatch, std=1e6)  # beyond float16
  with pytest.raises(errors.DataError, match='image 0 are not finite'):
    prepare('digits', tmp_path / 'd', **DIGITS)
  assert not list((tmp_path / 'd').iterdir())


# folders of images ----------------------------------------------------------------


def folder(root, count=40, classes=2):
  for i in range(count):
    path = root / f'c{i % classes}' / f'{i:03d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((20, 24, 3), i, np.uint8)).save(path)
  return f'folder:{root}'


FOLDER = dict(DIGITS, max_images=0, shard_size=10)


def test_unreadable_images_are_skipped_and_listed(tmp_path):
  source = folder(tmp_path / 'raw')
  bad = tmp_path / 'raw/c1/007.png'
  whole = bad.read_bytes()
  bad.write_bytes(whole[:40])
  options = dict(FOLDER, max_skipped=0.05)
  manifest, said = prepare(source, tmp_path / 'd', **options)
  assert manifest.count == 39 and manifest.skipped == 1
  assert '1 images skipped' in said
  line = (tmp_path / 'd/skipped.txt').read_text()
  assert line.startswith(f'{bad}\tunreadable image of 40 bytes')
  stored = pipeline.load(tmp_path / 'd')
  seen = sorted(int(stored.example(i)['image'][0, 0, 0]) for i in range(39))
  assert seen == [i for i in range(40) if i != 7]

  before = stamps(tmp_path / 'd')
  assert prepare(source, tmp_path / 'd', **options)[0] == manifest
  assert stamps(tmp_path / 'd') == before
  bad.write_bytes(whole)  # once it is repaired, its shard is written again
  manifest, _ = prepare(source, tmp_path / 'd', **options)
  after = stamps(tmp_path / 'd')
  assert manifest.count == 40 and manifest.skipped == 0
  assert len([name for name in after if after[name] != before[name]]) == 1
  assert not (tmp_path / 'd/skipped.txt').exists()


def test_too_many_unreadable_images_fail(tmp_path):
  source = folder(tmp_path / 'raw')
  (tmp_path / 'raw/c1/007.png').write_bytes(b'')
  with pytest.raises(errors.DataError, match='1 of 40 images cannot be read, more'):
    prepare(source, tmp_path / 'd', **FOLDER)
  assert 'it is empty' in (tmp_path / 'd/skipped.txt').read_text()
  assert not (tmp_path / 'd/manifest.json').exists()


def test_the_first_unreadable_image_fails_when_asked_to(tmp_path):
  source = folder(tmp_path / 'raw')
  (tmp_path / 'raw/c1/007.png').write_bytes(b'<html>')
  with pytest.raises(errors.DataError, match='c1/007.png: unreadable .* web page'):
    prepare(source, tmp_path / 'd', on_error='fail', **FOLDER)


def test_small_images_are_pointed_out(tmp_path):
  source = folder(tmp_path / 'raw')
  _, said = prepare(source, tmp_path / 'd', **dict(FOLDER, image_size=32))
  assert 'warning: 40 images (100.0%) are smaller than 32 pixels' in said


def test_an_unfitting_number_of_classes_is_refused(tmp_path):
  source = folder(tmp_path / 'raw', classes=3)
  with pytest.raises(errors.DataError, match=r'3 classes \(c0 to c2\), not num_cl'):
    prepare(source, tmp_path / 'd', num_classes=1000, **FOLDER)


def test_labels_out_of_range_are_refused(tmp_path):
  source = Precomputed(np.zeros((5, 8, 8, 8), np.float16))
  with pytest.raises(errors.DataError, match=r'row 3: label 3 out of range \[0, 3'):
    prepare(source, tmp_path / 'd', num_classes=3, image_size=64)
  source.first_label = -1
  with pytest.raises(errors.DataError, match='row 0: label -1 out of range'):
    prepare(source, tmp_path / 'd', image_size=64)


# continuing -----------------------------------------------------------------------


def test_a_finished_data_set_is_left_alone(digits):
  out, manifest, _ = digits
  before = stamps(out)
  options = dict(DIGITS, flip=True, encoder=(HOG,), encoder_dtype='float32')
  again, said = prepare('digits', out, **options)
  assert again == manifest
  assert stamps(out) == before
  assert 'to write' not in said


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(image_size=32), 'image_size=16, now 32'),
        (dict(flip=True), 'flip=False, now True'),
        (dict(max_images=90), 'images=100, now 90'),
        (dict(shard_size=50), 'shard_size=30, now 50'),
        (dict(image_format='jpeg'), "image_format='png', now 'jpeg'"),
    ],
)
def test_another_data_set_is_never_mixed_in(tmp_path, change, message):
  prepare('digits', tmp_path / 'd', **DIGITS)
  for name in ('manifest.json', None):
    with pytest.raises(errors.DataError, match=message):
      prepare('digits', tmp_path / 'd', **(DIGITS | change))
    if name:
      (tmp_path / 'd' / name).unlink()


def damage(path, kind):
  data = bytearray(path.read_bytes())
  if kind == 'flip':
    data[len(data) // 3] ^= 1
  path.write_bytes(data[:100] if kind == 'cut' else data)
  if kind == 'remove':
    path.unlink()


@pytest.mark.parametrize('kind', ['cut', 'flip', 'remove'])
@pytest.mark.parametrize('suffix', ['array_record', 'json'])
def test_only_what_is_damaged_is_written_again(tmp_path, kind, suffix):
  manifest, _ = prepare('digits', tmp_path / 'd', **DIGITS)
  before = stamps(tmp_path / 'd')
  path = tmp_path / f'd/data-00002-of-00004.{suffix}'
  if (kind, suffix) == ('flip', 'json'):
    path.write_bytes(b'\x00' + path.read_bytes()[1:])
  else:
    damage(path, kind)
  again, _ = prepare('digits', tmp_path / 'd', **DIGITS)
  after = stamps(tmp_path / 'd')
  changed = [name for name in after if after[name] != before[name]]
  assert changed == ['data-00002-of-00004.array_record']
  assert again == manifest
  pipeline.load(tmp_path / 'd', verify=True)


SLOW = """
import sys, time
from irepa_jax.data import sources
from irepa_jax.jobs import prepare

class Slow:
  def __init__(self, source): self.source = source
  def __getattr__(self, name): return getattr(self.source, name)
  def __len__(self): return len(self.source)
  def __getitem__(self, i):
    time.sleep(0.01)
    return self.source[i]

options = eval(sys.argv[2])
prepare.prepare(Slow(sources.create('digits')), sys.argv[1], threads=1, **options)
"""


def test_kill_9_loses_at_most_the_shard_in_hand(tmp_path):
  out = tmp_path / 'd'
  env = dict(os.environ, JAX_PLATFORMS='cpu')
  kept = {}
  for wanted in (1, 3):
    process = subprocess.Popen(
        [sys.executable, '-c', SLOW, str(out), repr(DIGITS | {'shard_size': 20})],
        env=env,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
      wait_for(lambda n=wanted: len(list(out.glob('*.json'))) >= n, process)
      time.sleep(0.05)
    finally:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    finished = {f.stem for f in out.glob('data-*.json')}
    now = {name: stamp for name, stamp in stamps(out).items() if name.split('.')[0] in finished}
    assert kept.items() <= now.items()  # finished shards were not written again
    kept = now
    assert not (out / 'manifest.json').exists()
    with pytest.raises(errors.DataError, match='is not finished'):
      pipeline.load(out)
  options = DIGITS | {'shard_size': 20}
  manifest, _ = prepare('digits', out, **options)
  assert kept.items() <= stamps(out).items()
  straight, _ = prepare('digits', tmp_path / 'straight', **options)
  assert manifest == straight  # checksums of every shard included
  assert names(out) == names(tmp_path / 'straight')  # nothing left over


def wait_for(condition, process):
  for _ in range(20_000):
    if condition():
      return
    assert process.poll() is None
    time.sleep(0.01)
  raise AssertionError('waited 200 s')


def test_processes_divide_the_shards(tmp_path, monkeypatch):
  monkeypatch.setattr('irepa_jax.data.shards.POLL_S', 0.01)
  results = {}

  def work(index):
    results[index] = prepare(
        'digits', tmp_path / 'd', process_index=index, process_count=3, **DIGITS
    )

  workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  alone, _ = prepare('digits', tmp_path / 'alone', **DIGITS)
  assert [results[i][0] for i in range(3)] == [alone] * 3
  assert 'by one of 3 processes' in results[0][1] and results[1][1] == ''
  assert names(tmp_path / 'd') == names(tmp_path / 'alone')


def test_two_real_processes_prepare_and_read_one_data_set(tmp_path):
  options = dict(DIGITS, flip=True)
  rows = multihost.run(
      """
      import itertools
      from jax.experimental import multihost_utils
      from irepa_jax.distributed import sharding
      from irepa_jax.data import pipeline
      from irepa_jax.jobs import prepare
      manifest = prepare.prepare('digits', arguments['out'], **arguments['options'])
      split = sharding.batch_sharding(sharding.make_mesh())
      mine = pipeline.local_rows(split, 8)
      batches = pipeline.batches(
          pipeline.load(arguments['out']), batch_size=8, seed=1, rows=mine, flips=True
      )
      arrays = [pipeline.to_device(b, split) for b in itertools.islice(batches, 3)]
      sums = [a['image'].astype(jnp.int32).sum((1, 2, 3)) for a in arrays]
      sums = multihost_utils.process_allgather(sums, tiled=True)
      result(sums=np.array(sums).tolist(), rows=mine, count=manifest.count)
      """,
      processes=2,
      devices=2,
      out=str(tmp_path / 'd'),
      options=options,
  )
  prepare('digits', tmp_path / 'alone', **options)
  alone = pipeline.load(tmp_path / 'alone')
  assert manifests.read(tmp_path / 'd') == alone.manifest
  batches = pipeline.batches(alone, batch_size=8, seed=1, flips=True)
  batches = itertools.islice(batches, 3)
  sums = [b['image'].astype(int).sum((1, 2, 3)).tolist() for b in batches]
  assert [row['sums'] for (row,) in rows] == [sums, sums]
  assert [row['rows'] for (row,) in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
  usage = types.SimpleNamespace(free=1000)
  monkeypatch.setattr(tool.shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(errors.DataError, match='has 1 kB free and about .* needed'):
    prepare('digits', tmp_path / 'd', **DIGITS)


def test_a_bucket_is_written_through_a_local_folder():
  with pytest.raises(errors.DataError, match='gcloud storage cp -r'):
    prepare('digits', 'gs://bucket/data', **DIGITS)


# the command line -----------------------------------------------------------------


@pytest.mark.parametrize('out', ['file', 'file/under', '/proc/nowhere'])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, out):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UsageError, match='is no folder to write to'):
    prepare('digits', tmp_path / out, **DIGITS)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(image_format='gif'), "image_format='gif': one of jpeg, png, none"),
        (dict(encoder_dtype='float16'), "encoder_dtype='float16': one of"),
        (dict(shard_size=0), 'shard_size=0: 1 or more'),
        (dict(threads=-1), 'threads=-1: 0 or more'),
        (dict(max_images=-5), 'max_images=-5: 0 or more'),
        (dict(max_skipped=1.5), 'max_skipped=1.5: from 0 to 1'),
        (dict(on_error='ignore'), "on_error='ignore': one of skip, fail"),
        (dict(image_size=15), 'image_size=15 is no multiple of 2'),
        (dict(autoencoder='none', flip=True), '--flip stores mirrored latents'),
        (dict(encoder=(HOG,), encoder_weights=('a', 'b')), '2 files for 1 encoders'),
        (dict(autoencoder='har'), "did you mean 'haar'"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, options, message):
  with pytest.raises(errors.UsageError, match=message):
    prepare('digits', tmp_path / 'd', **(DIGITS | options))
  assert not (tmp_path / 'd').exists()


def command(*arguments):
  env = dict(os.environ, JAX_PLATFORMS='cpu')
  return subprocess.run(
      [sys.executable, '-m', 'irepa_jax.tools.prepare', *arguments],
      env=env,
      capture_output=True,
      text=True,
      check=False,
  )


def test_the_command_line(tmp_path):
  out = tmp_path / 'd'
  arguments = ['--source=digits', f'--out={out}', '--image_size=16', '--flip']
  arguments += ['--autoencoder=haar', '--image_format=png', f'--encoder={HOG}']
  done = command(*arguments, '--max_images=50')
  assert done.returncode == 0, done.stderr
  assert '50 records of 10 classes in 2 shards' in done.stdout
  assert '50/50' in done.stderr  # the progress bar
  assert json.loads((out / 'manifest.json').read_text())['count'] == 50
  refused = command(*arguments, '--max_images=40')
  assert refused.returncode == 3
  (line,) = [s for s in refused.stderr.splitlines() if s.startswith('ERROR')]
  assert 'images=50, now 40' in line and 'Traceback' not in refused.stderr
