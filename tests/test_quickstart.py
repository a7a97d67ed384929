"""The embedded default, whole: it trains, saves, samples and scores.

Seeds differ by up to 0.1 in accuracy at 700 steps and the gap between none and
irepa was 0.18 to 0.26, so a gap of 0.1 is asserted and nothing more: REPA
against iREPA is too close to call at this size.
"""

import json

from configs import quickstart
from configs import quickstart_jit
from irepa_jax.jobs import train


def accuracy(preset, workdir, recipe=quickstart, steps=700):
  config = recipe.get_config(preset)
  config.update(
      steps=steps, eval_every=steps, sample_every=0, checkpoint_every=steps,
      mesh_data=1, allow_subset=True,
  )  # fmt: skip
  assert train.run(config, str(workdir)) == 0
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  scores = [json.loads(line) for line in lines if 'eval/accuracy' in line]
  assert [s['step'] for s in scores] == [steps]
  assert scores[0]['eval/floor_frechet'] < 0.01
  assert (workdir / 'curve.png').exists()
  return scores[0]['eval/accuracy']


def test_alignment_learns_faster_than_none(tmp_path):
  aligned = accuracy('irepa', tmp_path / 'irepa')
  plain = accuracy('none', tmp_path / 'none')
  assert aligned > plain + 0.1


def test_pixels_learn_as_well(tmp_path):
  # 0.61 was seen at seed 0; chance is 0.1.
  assert accuracy('irepa', tmp_path, quickstart_jit, steps=300) > 0.4
