"""Encoders are timed and compared with a step; how fast is not tested."""

import pytest

from configs import quickstart
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.encoders import vit
from irepa_jax.tools.benchmarks import encoders as benchmark_encoders

# Found as 'test_benchmark_encoders:SMALL'.
SMALL = encoders.Spec('small', vit.ViT(32, 2, 2, patch=8), gflops=(0.01,))


def config(**fields):
  found = quickstart.get_config('irepa')
  fields = {
      'encoder': 'hog-vit-g4_d64,test_benchmark_encoders:SMALL',
      'batch_size': 8,
      'image_size': 32,
      'mesh_data': 2,
      'allow_subset': True,
  } | fields
  found.update(fields)
  return found


def test_every_encoder_of_the_config_is_timed():
  step_s, rows = benchmark_encoders.benchmark_encoders(
      config(), images=4, repeats=1
  )
  assert [row['encoder'] for row in rows] == ['hog-vit-g4_d64', 'small']
  for row in rows:
    each = row['ms'] / 4e3
    assert row['img/s'] == pytest.approx(1 / each, rel=0.1)
    assert row['step img/s'] == pytest.approx(1 / (each + step_s), rel=0.1)
    share = float(row['share'].removesuffix('%')) / 100
    assert share == pytest.approx(each / (each + step_s), abs=0.05)


def test_the_others_are_known_by_their_flops(monkeypatch):
  monkeypatch.setattr(benchmark_encoders, 'encoder_s', lambda *_, **__: 1.0)
  monkeypatch.setattr(benchmark_encoders, 'cached_step_s', lambda *_: 1.0)
  from configs import sit_xl

  found = sit_xl.get_config('irepa')
  _, rows = benchmark_encoders.benchmark_encoders(found, others=True)
  assert rows[0]['encoder'] == 'dinov2-vit-b'
  shares = {row['encoder']: row['share'] for row in rows}
  # 3,549 of 3,549 + 724 GFLOP: a step is three times the forward pass of
  # SiT-XL/2 and the projector.
  assert shares['dinov3-vit-7b16'] == '83.1% by FLOPs'
  assert 'by FLOPs' not in shares['dinov2-vit-b'] and 'sift' not in shares
  lines = benchmark_encoders.table(rows)
  assert len({line.count('|') for line in lines}) == 1


def test_images_must_fill_the_mesh():
  with pytest.raises(errors.UsageError, match='batch_size=3 is not divisible'):
    benchmark_encoders.benchmark_encoders(config(), images=3)
