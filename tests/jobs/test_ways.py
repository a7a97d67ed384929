"""Every value that chooses a way is started once, from config to samples.

A row of WAYS is a field with its values; start i takes the i-th of each, and
begins again where a field has fewer. What a value computes is tested elsewhere.
"""

import json

import jax
import pytest
import real_runs

from configs import base
from configs import quickstart
from irepa_jax import check
from irepa_jax import errors
from irepa_jax.data import manifest as manifests
from irepa_jax.jobs import reports
from irepa_jax.jobs import train

HOG = ('hog-vit-g4_d128', 'hog-vit-g8_d64', 'hog-vit-g2_d32')
WAYS = {
    # Alignment.
    'preset': tuple(base.ALIGNMENT),
    'features': ('cached', 'cached', 'online', 'online'),
    'encoder': (HOG[0], HOG[2], f'{HOG[1]},{HOG[0]}'),
    'projector': ('mlp', 'linear', 'conv'),
    'projector_kernel': check.KERNELS,
    'spatial_norm': (True, False),
    'encoder_dtype': ('float32', 'bfloat16'),
    'encoder_scan': (True, False),
    # Model.
    'dtype': ('bfloat16', 'float32'),
    'attention': ('auto', 'xla'),  # cudnn: below
    'qk_norm': (True, False),
    'remat': ('none', 'names', 'full'),
    'scan_layers': (True, True, False),
    # Diffusion.
    'path': ('linear', 'cosine'),
    'prediction': ('v', 'x', 'eps'),
    'time': ('uniform', 'lognormal', 'logit_normal'),
    'loss_space': ('', 'v', 'x', 'eps'),
    'objective': ('flow_matching',),  # the others: MEAN_FLOWS
    'product_dtype': ('float32',),
    # Data, devices, the run directory.
    'flips': (False, True),
    'decayed': ('preset', 'matrices', 'all'),
    'skip_bad': (True, False),
    'train_positions': (False, True),
    'drop_colours': (True, False),
    'verify_data': (False, True),
    'fsdp': (False, True, True, False),
    'mesh_data': (1, 2, -1),
    'mesh_model': (1, 1, 2),
    'accumulate': (1, 2),
    'allow_subset': (True,),  # False: below
    'resume': ('auto', 'force'),
    # Sampling and scores.
    'labels': ('random', 'balanced'),
    'sampler': ('euler', 'heun', 'euler_maruyama'),
    'guidance': (1.0, 2.0),
    'guidance_ends': ('open', 'open', 'closed', 'closed'),
    'quantise': ('truncate', 'round'),
    'evaluator': ('fid', '', 'digits'),
}
ELSEWHERE = {
    'attention': ('cudnn',),
    'allow_subset': (False,),
    # An autoencoder that is trained: test_train_end_to_end.
    'end_to_end': (True, False),
    'lpips_range': ('released', 'unit'),
}
# They differentiate along the path, which leaves other fields no choice.
MEAN_FLOWS = (
    {'objective': 'mean_flow', 'product_dtype': 'float32'},
    {'objective': 'improved_mean_flow', 'product_dtype': 'bfloat16'},
)
STARTS = 4  # the most values of a field
TINY = dict(
    model='SiT-T/2', batch_size=8, projector_hidden=16, steps=2, log_every=1,
    checkpoint_every=1, sample_every=2, sample_count=8, sample_steps=2,
    eval_count=20, watchdog_s=0, autoencoder='haar', align_coefficient='1.0',
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick_compiler():
  """A fifth of the time of compiling; the mathematics is the same."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  return real_runs.data_set(
      tmp_path_factory.mktemp('ways') / 'data',
      max_images=40,
      flip=True,
      encoder=HOG,
  )


def config_of(start, data, **changes):
  """Returns the configuration of a start: the i-th value of each field."""
  ways = {field: values[start % len(values)] for field, values in WAYS.items()}
  config = quickstart.get_config(ways.pop('preset'))
  if not config.encoder:
    ways |= dict(encoder='', align_coefficient='0.0')
  config.update(TINY | {'data': str(data), 'eval_reference': str(data)})
  config.update(ways | changes)
  config.eval_every = 2 * bool(config.evaluator)
  return config


@pytest.mark.parametrize('start', range(STARTS))
def test_every_way_starts_checks_and_samples(start, data, tmp_path, small):
  config = config_of(start, data)
  assert train.run(config, tmp_path, check_only=True) == 0
  assert train.run(config, tmp_path) == 0
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  losses = [line['loss'] for line in found if 'loss' in line]
  assert len(losses) == 2 and None not in losses
  assert (tmp_path / 'samples/0000002.png').exists()
  assert bool(config.evaluator) == any('eval' in str(line) for line in found)


@pytest.mark.parametrize('changes', MEAN_FLOWS, ids=lambda c: c['objective'])
def test_every_mean_flow_starts_and_samples(changes, data, tmp_path):
  fixed = check.MEAN_FLOW | dict(evaluator='', preset='none', encoder='')
  config = config_of(3, data, **fixed, **changes, align_coefficient='0.0')
  config.guidance = 1.0
  assert train.run(config, tmp_path) == 0
  assert (tmp_path / 'samples/0000002.png').exists()


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'attention': 'cudnn'}, 'except on NVIDIA GPUs'),
        ({'allow_subset': False, 'mesh_data': 3}, 'allow_subset'),
        ({'features': 'cached', 'encoder': 'hog-vit-g1_d32'}, 'prepare with'),
    ],
)
def test_a_way_that_is_closed_here_is_one_line(
    data, tmp_path, changes, message
):
  with pytest.raises((errors.UsageError, errors.DataError), match=message):
    train.run(config_of(3, data, **changes), tmp_path, check_only=True)


def test_no_way_is_forgotten():
  known = {field: set(values) for field, values in WAYS.items()}
  for ways in (ELSEWHERE, *({k: {v} for k, v in m.items()} for m in MEAN_FLOWS)):
    for field, values in ways.items():
      known.setdefault(field, set()).update(values)
  for field, values in check.CHOICES.items():
    assert known[field] == set(values), field
  for field, (default, *_) in base.FIELDS.items():
    if isinstance(default, bool):
      assert known[field] == {True, False}, field
  assert known['evaluator'] == {'', *reports.EVALUATORS}


def test_any_of_the_stored_encoders_serves(data):
  manifest = manifests.read(data)
  assert [item.name for item in manifest.encoders] == list(HOG)
  assert list(manifests.places(manifest, (HOG[2], HOG[0]))) == [2, 0]
  assert list(manifests.places(manifest, True)) == [0, 1, 2]
