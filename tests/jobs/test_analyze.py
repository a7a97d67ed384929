"""The command line of the analysis."""

import csv
import json

from absl import flags
import numpy as np
import PIL.Image
import pytest

from configs import quickstart
from irepa_jax import cli
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.analysis import inputs
from irepa_jax.distributed import sharding
from irepa_jax.jobs import analyze_options
from irepa_jax.jobs import run_tokens
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import train
from irepa_jax.tools import analyze as tool

pytest.importorskip('matplotlib')
HOG = 'hog-vit-g4_d128'
PHOTOS = '--data=sklearn:photos'


def analyze(*args):
  """Runs the command in this process; returns its exit status."""
  values = flags.FlagValues()
  cli.define_options(analyze_options.Options, values)
  return tool.main(values(['analyze', *map(str, args)]), values)


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """HOG and saved tokens of noise on twelve digits."""
  out = tmp_path_factory.mktemp('analysis')
  tokens = np.random.default_rng(0).standard_normal((12, 16, 8))
  np.save(out / 'noise.npy', tokens.astype(np.float32))
  status = analyze(
      '--data=digits', '--image_size=16', '--limit=12', f'--encoders={HOG}',
      f'--tokens={out / "noise.npy"}', '--shuffled', f'--out={out}',
  )  # fmt: skip
  assert status == 0
  return out


def test_measures_ranks_and_draws(measured):
  out = measured
  rows = read(out / 'metrics.csv')
  names = [HOG, 'noise', f'{HOG} shuffled', 'noise shuffled']
  assert [r['encoder'] for r in rows] == [n for n in names for _ in range(2)]
  assert [r['gamma'] for r in rows] == ['', '0.6'] * 4
  hog, noise, control = rows[0], rows[2], rows[4]
  assert float(hog['cds']) > 2 * max(float(noise['cds']), float(control['cds']))
  assert float(hog['rmsc']) == pytest.approx(float(control['rmsc']), abs=1e-5)
  assert len(read(out / 'per_image.csv')) == 8 * 12
  assert {r['encoder'] for r in read(out / 'ranking.csv')} == set(names)
  settings = json.loads((out / 'summary.json').read_text())['settings']
  assert settings['limit'] == 12 and settings['definition'] == 'code'
  for name in ('metrics', 'decay', 'similarity_0', 'similarity_1', 'components'):
    assert (out / f'{name}.pdf').read_bytes().startswith(b'%PDF')
    with PIL.Image.open(out / f'{name}.png') as picture:
      assert min(picture.size) > 200


def test_correlates_metrics_with_a_results_table(measured):
  out = measured
  results = out / 'results.csv'
  results.write_text(f'encoder,fid\n{HOG},20\nnoise,30\nother,40\n')
  metrics = out / 'three.csv'
  metrics.write_text(f'encoder,gamma,lds\n{HOG},,0.3\nnoise,,0.2\nother,,0.1\n')
  analyze(
      'correlate', f'--results={results}', f'--metrics={metrics}', f'--out={out}'
  )
  by_metric = {r['x']: r for r in read(out / 'correlation.csv')}
  assert float(by_metric['lds']['pearson']) == pytest.approx(-1)
  assert by_metric['rmsc']['n'] == '0'
  assert (out / 'correlation.pdf').exists()


@pytest.fixture(scope='module')
def run_directory(tmp_path_factory):
  """A tiny run of the quickstart with two checkpoints."""
  folder = tmp_path_factory.mktemp('runs') / 'tiny'
  config = quickstart.get_config('repa')
  config.update(
      steps=4, checkpoint_every=2, batch_size=8, sample_every=0, eval_every=0,
      watchdog_s=0, mesh_data=1, allow_subset=True,
  )  # fmt: skip
  assert train.run(config, str(folder)) == 0
  return folder


def test_monitors_the_checkpoints_of_a_run(run_directory, tmp_path):
  analyze(
      'monitor', f'--runs={run_directory}', '--blocks=1,4', '--limit=16',
      f'--out={tmp_path}',
  )  # fmt: skip
  rows = read(tmp_path / 'monitor.csv')
  assert [(r['tokens'], r['step']) for r in rows] == [
      (HOG, ''),
      ('tiny block 1 t 0.5', '2'), ('tiny block 1 t 0.5', '4'),
      ('tiny block 4 t 0.5', '2'), ('tiny block 4 t 0.5', '4'),
  ]  # fmt: skip
  assert all(0 < float(r['cka']) <= 1.0001 for r in rows)
  assert (tmp_path / 'monitor.pdf').exists()


def test_compares_sets_of_tokens_by_pairs(measured, tmp_path):
  again = tmp_path / 'again.npy'
  np.save(again, np.load(measured / 'noise.npy')[..., ::-1])
  analyze(
      'similarity', '--data=digits', '--limit=12', f'--encoders={HOG}',
      f'--tokens={measured / "noise.npy"},{again}', '--image_size=16',
      f'--out={tmp_path}',
  )  # fmt: skip
  rows = read(tmp_path / 'similarity.csv')
  names = [(r['tokens'], r['other']) for r in rows]
  assert names == [(HOG, 'noise'), (HOG, 'again'), ('noise', 'again')]
  same = rows[-1]
  assert float(same['cka']) == pytest.approx(1, abs=1e-5)
  assert float(same['cknna']) == pytest.approx(1, abs=1e-5)
  assert float(rows[0]['cka']) == pytest.approx(float(rows[1]['cka']), abs=1e-5)
  assert float(rows[0]['cka']) < 0.9


def test_tokens_of_a_run_from_latents_and_from_images_agree(run_directory):
  """The stored moments are float16 of what the autoencoder gives."""
  run, mesh = saved_run.open_(run_directory), sharding.make_mesh()
  found = []
  for data in (run.data, 'digits'):
    pictures = inputs.open_pictures(data, 16, 8)
    (batch,) = inputs.batches(pictures, 8)
    _, load = run_tokens.candidate(run, mesh, pictures, 2, 0.5)
    found.append(load().encode(batch))
  np.testing.assert_allclose(found[0], found[1], atol=2e-2)
  assert found[0].shape == (8, 16, models.sizes('SiT-T/2')['width'])


@pytest.mark.parametrize(
    'args, error, message',
    [
        ([f'--encoders={HOG}'], errors.UsageError, '--data is required'),
        ([PHOTOS], errors.UsageError, 'name --encoders'),
        ([PHOTOS, '--encoders=dino9'], errors.UsageError, 'dino9'),
        ([PHOTOS, f'--encoders={HOG}', '--points=2,2'], errors.UsageError, 'y,x;y,x'),
        ([PHOTOS, f'--encoders={HOG}', '--gamma=a'], errors.UsageError, 'numbers'),
        ([PHOTOS, f'--encoders={HOG}', '--masks=no'], errors.DataError, 'mask folder'),
        (['--data=no', f'--encoders={HOG}'], errors.DataError, 'no not found'),
        ([PHOTOS, '--encoders=dinov2-vit-s@no.pth'], errors.DataError, 'no.pth'),
        ([PHOTOS, '--runs=nowhere'], errors.CheckpointError, 'no config.json'),
        (['monitor', PHOTOS], errors.UsageError, '--runs'),
        (['survey'], errors.UsageError, 'measure, correlate, monitor'),
        (['similarity', PHOTOS, f'--encoders={HOG}'], errors.UsageError, 'too few'),
        (
            ['similarity', '--data=digits', f'--encoders={HOG}', '--image_size=16'],
            errors.UsageError,
            'two sets',
        ),
        (['correlate', '--where=model'], errors.UsageError, 'column=value'),
        (['correlate', '--x=nothing'], errors.UsageError, 'no row has fid'),
        ([PHOTOS, f'--encoders={HOG},{HOG}'], errors.UsageError, '2 sources'),
        ([PHOTOS, '--encoders=dinov2-vit-bb'], errors.UsageError, "'dinov2-vit-b'"),
    ],
)
def test_bad_input_gives_one_clear_line(args, error, message, tmp_path):
  with pytest.raises(error, match=message) as raised:
    analyze(*args, f'--out={tmp_path}')
  assert '\n' not in str(raised.value)


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
  """Folders and files with one fault each, and two sound images."""
  folder = tmp_path_factory.mktemp('bad')
  rng = np.random.default_rng(0)
  noise = lambda side: rng.integers(0, 256, (side, side, 3), np.uint8)
  grey = lambda side: np.zeros((side, side), np.uint8)
  files = {
      'two/a.png': noise(64), 'two/b.png': noise(64), 'one/a.png': noise(64),
      'broken/a.png': noise(64), 'small/a.png': grey(32), 'small/b.png': grey(32),
      'blank/a.png': grey(64), 'blank/b.png': grey(64), 'half/a.png': grey(64),
  }  # fmt: skip
  for name, pixels in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(pixels).save(folder / name)
  (folder / 'broken/b.png').write_bytes(b'no image')
  (folder / 'empty').mkdir()
  np.save(folder / 'oblong.npy', np.ones((2, 60, 4), np.float32))
  np.save(folder / 'three.npy', np.ones((3, 64, 4), np.float32))
  return folder


@pytest.mark.parametrize(
    'args, status, message',
    [
        (['two', '--tokens={}/oblong.npy'], 2, '60 tokens form no square grid'),
        (['two', '--tokens={}/oblong.npy', '--grid=5x10'], 2, 'grid of 5 x 10'),
        (['two', '--tokens={}/three.npy'], 3, 'of 3 images, --data gives 2'),
        (['two', '--masks={}/small'], 3, '32x32 pixels, its image 64x64'),
        (['two', '--masks={}/blank'], 3, 'none of 2 masks'),
        (['two', '--masks={}/half'], 3, 'no mask for image b.png'),
        (['two', '--masks={}/empty'], 3, 'empty is empty'),
        (['one'], 3, 'gives 1 image: at least 2'),
        (['broken'], 3, r'b\.png: unreadable image of 8 bytes: it begins with'),
        (['empty'], 3, 'no images under .*empty'),
    ],
)
def test_bad_data_gives_one_clear_line_and_its_status(
    bad, tmp_path, args, status, message
):
  name, *options = args
  source = [] if 'tokens' in str(options) else ['--encoders=hog-vit-g8_d128']
  with pytest.raises((errors.UsageError, errors.DataError), match=message) as raised:
    analyze(
        f'--data={bad / name}', '--image_size=64', f'--out={tmp_path}',
        *source, *(option.format(bad) for option in options),
    )  # fmt: skip
  assert raised.value.exit_status == status
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('flag', ['batch_size=0', 'limit=-1', 'dpi=0', 'drawn=-1'])
def test_numbers_out_of_range_are_refused(flag):
  with pytest.raises(flags.Error, match=flag.partition('=')[0]):
    analyze(PHOTOS, f'--{flag}')
