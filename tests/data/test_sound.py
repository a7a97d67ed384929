"""A manifest that cannot be true is refused with the field and its value."""

import json

import data_sets
import pytest

from irepa_jax import errors
from irepa_jax.data import manifest as manifests


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('set') / 'data'
  data_sets.write(path, count=6, shards=2)
  return path


@pytest.mark.parametrize(
    'field, value, said',
    [
        ('count', 7, 'count is 7; it must be 6, the number of records'),
        ('count', 5, 'count is 5; it must be 6'),
        ('count', '6', 'must be 6'),
        ('count', None, 'count is None'),
        ('shards', [], 'at least one shard'),
        ('shards', None, 'not complete'),
        ('flips', [], None),
        ('latent_std', None, 'latent_std is None; it must be 2 finite'),
        ('latent_mean', [0.0], r'latent_mean is \(0.0,\); it must be 2'),
        ('scale', [1.0, float('nan')], 'finite'),
        ('bias', ['a', 'b'], 'finite'),
        ('class_names', None, 'class_names is None'),
        ('label_range', None, 'label_range is None'),
        ('label_range', [5, 1], 'smallest and the largest'),
        ('num_classes', 'ten', 'num_classes is ten'),
        ('image_size', 0, 'image_size is 0'),
        ('image_format', 'gif', 'image_format is gif'),
        ('moments_shape', [4, 4, 3], 'twice the channels'),
        ('moments_shape', [4, 4], 'twice the channels'),
        ('encoders', [{'name': 'e', 'sha256': '', 'shape': [4]}], 'encoders'),
    ],
)
def test_fields(folder, tmp_path, field, value, said):
  content = json.loads((folder / manifests.NAME).read_text())
  (tmp_path / manifests.NAME).write_text(json.dumps(content | {field: value}))
  if said is None:
    assert manifests.read(tmp_path).count == 6
    return
  with pytest.raises(errors.DataError, match=said) as raised:
    manifests.read(tmp_path)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', ['../x', '/etc/passwd', '..', '', 'a\0b', 3])
def test_a_data_set_never_reads_outside_its_folder(folder, tmp_path, name):
  content = json.loads((folder / manifests.NAME).read_text())
  content['shards'][0]['name'] = name
  (tmp_path / manifests.NAME).write_text(json.dumps(content))
  with pytest.raises(errors.DataError, match='a file in the same folder'):
    manifests.read(tmp_path)
