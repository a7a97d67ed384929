"""Row r of global batch t is one example, whatever reads it."""

import collections
import dataclasses
import itertools
import threading

import data_sets
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.distributed import sharding

COUNT = 50
# Examples 0, 1, the first of epoch 1, and 10**12, of ImageNet with seed 0.
FIXED = [
    (0, 201205, False),
    (0, 1156621, True),
    (1, 845537, False),
    (780538, 596899, False),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'd'
  data_sets.write(path, COUNT)
  return path


@pytest.fixture
def dataset(folder):
  return pipeline.load(folder)


def take(dataset, steps, **settings):
  settings = dict(batch_size=8, seed=3, threads=2) | settings
  stream = pipeline.batches(dataset, **settings)
  found = list(itertools.islice(stream, steps))
  stream.close()
  return found


def ids(batch):
  """The record of each row, read from the pixels."""
  return batch['image'][:, 0, 0, 0].tolist()


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_holds_what_was_written(dataset):
  (batch,) = take(dataset, 1)
  for row, i in enumerate(ids(batch)):
    assert batch['label'][row] == i % 10
    np.testing.assert_array_equal(batch['moments'][row], data_sets.moments(i))
    np.testing.assert_array_equal(batch['image'][row], data_sets.pixels(i))
    tokens = batch['features'][0][row].astype(np.float32)
    np.testing.assert_array_equal(tokens, data_sets.tokens(i))
  kinds = {k: (v.dtype.name, v.shape) for k, v in batch.items() if k != 'features'}
  assert kinds == {
      'label': ('int32', (8,)),
      'moments': ('float16', (8, 4, 4, 4)),
      'image': ('uint8', (8, 8, 8, 3)),
  }
  assert batch['features'][0].dtype.name == 'bfloat16'


def test_what_is_not_wanted_is_not_read(dataset):
  (batch,) = take(dataset, 1, image=False, features=False)
  assert set(batch) == {'label', 'moments'}


def test_every_epoch_is_another_permutation(dataset):
  stream = [i for batch in take(dataset, 25) for i in ids(batch)]
  epochs = [stream[k : k + COUNT] for k in range(0, 200, COUNT)]
  assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  other = [i for batch in take(dataset, 7, seed=4) for i in ids(batch)]
  assert other[:COUNT] != stream[:COUNT]


@pytest.mark.parametrize('threads', [0, 1, 5])
def test_threads_do_not_change_the_order(dataset, threads):
  equal(take(dataset, 10, flips=True, threads=threads), take(dataset, 10, flips=True))


def test_any_step_can_be_the_first(dataset):
  whole = take(dataset, 20, flips=True)
  for start in (1, 7, 19):
    equal(take(dataset, 1, flips=True, start_step=start)[0], whole[start])


@pytest.mark.parametrize('batch_size', [1, 37, 64])
def test_the_batch_size_cuts_one_and_the_same_stream(dataset, batch_size):
  stream = [i for batch in take(dataset, 25) for i in ids(batch)]
  batches = take(dataset, 200 // batch_size, batch_size=batch_size)
  other = [i for batch in batches for i in ids(batch)]
  assert other == stream[: len(other)]


def test_far_steps_are_reached_at_once(dataset):
  (batch,) = take(dataset, 1, start_step=10**9)
  assert len(set(ids(batch))) == 8


@pytest.mark.parametrize('parts', [2, 4])
def test_processes_share_the_rows_of_one_batch(dataset, parts):
  whole = take(dataset, 9, flips=True)
  rows = np.array_split(np.arange(8), parts)
  split = [take(dataset, 9, flips=True, rows=part) for part in rows]
  for step, batch in enumerate(whole):
    joined = jax.tree.map(
        lambda *x: np.concatenate(x), *[part[step] for part in split]
    )
    equal(joined, batch)


def test_rows_in_any_arrangement(dataset):
  whole = take(dataset, 3)[2]
  part = take(dataset, 3, rows=[6, 1])[2]
  assert ids(part) == [ids(whole)[6], ids(whole)[1]]


def test_a_batch_larger_than_the_data_set(tmp_path):
  data_sets.write(tmp_path / 'd', 3, shards=1)
  dataset = pipeline.load(tmp_path / 'd')
  stream = [i for b in take(dataset, 3) for i in ids(b)]
  counts = collections.Counter(stream)
  assert set(counts.values()) == {8} and len(counts) == 3
  one = data_sets.write(tmp_path / 'one', 1, shards=1)
  assert ids(take(pipeline.load(tmp_path / 'one'), 1)[0]) == [0] * 8
  assert one.count == 1


def test_flips_mirror_everything_together(dataset):
  flipped = 0
  for batch in take(dataset, 25, flips=True):
    for row, i in enumerate(ids(batch)):
      flip = bool(batch['image'][row, 0, 0, 1] != 0)
      flipped += flip
      expected = data_sets.pixels(i)[:, ::-1] if flip else data_sets.pixels(i)
      np.testing.assert_array_equal(batch['image'][row], expected)
      moments = data_sets.moments(i, flip)
      np.testing.assert_array_equal(batch['moments'][row], moments)
      tokens = batch['features'][0][row].astype(np.float32)
      np.testing.assert_array_equal(tokens, data_sets.tokens(i, flip))
  assert 70 < flipped < 130  # of 200


def test_flips_are_drawn_anew_each_epoch():
  draw = lambda epoch: [
      pipeline.place(epoch * 200 + k, count=200, seed=0, flips=True)
      for k in range(200)
  ]
  flips = [{p.index: p.flip for p in draw(epoch)} for epoch in range(2)]
  same = sum(flips[0][i] == flips[1][i] for i in range(200))
  assert 70 < same < 130


def test_order_is_fixed_for_all_time():
  """A run continues after an upgrade only if these never change."""
  draw = lambda k, n, seed: pipeline.place(k, count=n, seed=seed, flips=True)
  seen = [tuple(draw(k, 1_281_167, 0)) for k in (0, 1, 1_281_167, 10**12)]
  assert seen == FIXED


def test_flips_need_mirrored_records(tmp_path):
  data_sets.write(tmp_path / 'd', 4, shards=1, flips=False)
  dataset = pipeline.load(tmp_path / 'd')
  with pytest.raises(errors.DataError, match='no mirrored latents'):
    take(dataset, 1, flips=True)


def test_images_alone_are_mirrored_in_flight(tmp_path):
  data_sets.write(
      tmp_path / 'd', 4, shards=1, flips=False, moments_shape=(), encoders=(),
      latent_mean=(), latent_std=(), bias=(), scale=(),
  )  # fmt: skip
  batches = take(pipeline.load(tmp_path / 'd'), 8, flips=True)
  edges = np.concatenate([batch['image'][:, 0, 0, 1] for batch in batches])
  assert set(edges) == {0, 70}


# devices ----------------------------------------------------------------------


def test_batches_are_split_over_the_devices(dataset):
  mesh = sharding.make_mesh(4, 2)
  split = NamedSharding(mesh, P('data'))
  assert pipeline.local_rows(split, 8) == list(range(8))
  (batch,) = take(dataset, 1)
  arrays = pipeline.to_device(batch, split)
  equal(jax.tree.map(np.asarray, arrays), batch)
  assert arrays['moments'].sharding == split
  assert arrays['moments'].addressable_shards[0].data.shape == (2, 4, 4, 4)


def test_local_rows_follow_the_mesh_and_not_the_process_number():
  mesh = jax.sharding.Mesh(np.array(jax.devices())[[6, 7, 2, 3, 0, 1, 4, 5]], 'data')
  here = set(jax.devices()[:4])

  class Half:
    def addressable_devices_indices_map(self, shape):
      whole = NamedSharding(mesh, P('data')).devices_indices_map(shape)
      return {d: index for d, index in whole.items() if d in here}

  rows = pipeline.local_rows(Half(), 16)
  assert rows == [4, 5, 6, 7, 8, 9, 10, 11]


# prefetch ---------------------------------------------------------------------


def test_prefetch_keeps_the_items_and_their_order():
  assert list(pipeline.prefetch(iter(range(20)), 3)) == list(range(20))


def test_prefetch_runs_ahead_by_its_size():
  seen = []
  source = (seen.append(i) or i for i in range(100))
  stream = pipeline.prefetch(source, 2)
  assert next(stream) == 0
  wait_until(lambda: len(seen) == 4)  # one taken, two queued, one in hand
  stream.close()
  assert len(seen) == 4


def test_prefetch_raises_an_error_in_its_place():
  def source():
    yield 1
    raise errors.DataError('shard x')

  stream = pipeline.prefetch(source())
  assert next(stream) == 1
  with pytest.raises(errors.DataError, match='shard x'):
    next(stream)


def test_closing_a_prefetch_ends_thread_and_source():
  closed = threading.Event()

  def source():
    try:
      yield from itertools.count()
    finally:
      closed.set()

  before = threading.active_count()
  stream = pipeline.prefetch(source())
  next(stream)
  stream.close()
  assert closed.is_set()
  assert threading.active_count() == before


def test_closing_a_prefetch_closes_the_readers(dataset):
  """Also while the thread waits for a place, or for a record."""
  before = threading.active_count()
  split = NamedSharding(sharding.make_mesh(1, 1, allow_subset=True), P('data'))
  for taken in (0, 1, 5):
    batches = pipeline.batches(dataset, batch_size=8, seed=3, threads=2)
    stream = pipeline.prefetch(pipeline.on_device(batches, split))
    found = list(itertools.islice(stream, taken))
    stream.close()
    equal([jax.tree.map(np.asarray, b) for b in found], take(dataset, taken))
    # Threads of other tests may end as well.
    wait_until(lambda: threading.active_count() <= before)


def wait_until(condition):
  for _ in range(500):
    if condition():
      return
    threading.Event().wait(0.01)
  raise AssertionError('waited 5 s')


# faults -----------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
  data_sets.write(tmp_path / 'd', COUNT)
  return tmp_path / 'd'


def rewrite(path, change):
  path.write_bytes(change(bytearray(path.read_bytes())))


def flip_bit(data):
  place = data.find(data_sets.moments(33).tobytes())
  assert place > 0
  data[place + 5] ^= 16
  return data


def test_a_missing_shard_is_named_at_once(copy):
  (copy / 'flip-1.array_record').unlink()
  with pytest.raises(errors.DataError, match='flip-1.array_record is missing'):
    pipeline.load(copy)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda data: data[:70_000], '70000 bytes, .* cut short'),
        (lambda data: b'version https://git-lfs.github.com/', 'git-lfs pointer'),
        (lambda data: b'<!doctype html>', 'a web page'),
    ],
)
def test_wrong_shards_are_named_at_once(copy, change, message):
  rewrite(copy / 'data-2.array_record', change)
  with pytest.raises(errors.DataError, match=f'data-2.array_record .*{message}'):
    pipeline.load(copy)


def test_a_flipped_bit_is_found_by_checksum(copy):
  rewrite(copy / 'data-1.array_record', flip_bit)
  with pytest.raises(errors.DataError, match='data-1.array_record is damaged'):
    pipeline.load(copy, verify=True)


def test_a_flipped_bit_stops_the_reader_with_shard_and_record(copy):
  dataset = pipeline.load(copy)
  rewrite(copy / 'data-1.array_record', flip_bit)
  with pytest.raises(errors.DataError, match='data-1.array_record record 16: .*hash'):
    take(pipeline.Dataset(copy, dataset.manifest), 7)


def test_a_damaged_record_is_replaced_and_counted_when_asked(copy, caplog):
  rewrite(copy / 'data-1.array_record', flip_bit)
  dataset = pipeline.load(copy, skip_bad=True)
  found = [ids(b) for b in take(dataset, 7, skip_bad=True)]
  assert found == [ids(b) for b in take(dataset, 7, skip_bad=True, threads=0)]
  assert 33 not in itertools.chain(*found)
  wanted = []
  for k in range(7 * 8):
    place = pipeline.place(k, count=COUNT, seed=3)
    wanted.append(34 if place.index == 33 else place.index)
  assert list(itertools.chain(*found)) == wanted
  assert 'passed over, 1 so far: shard' in caplog.text


def test_too_many_damaged_records_are_refused(copy, monkeypatch):
  monkeypatch.setattr(pipeline, 'MAX_BAD', 0)
  rewrite(copy / 'data-1.array_record', flip_bit)
  with pytest.raises(errors.DataError, match='1 records are damaged, too many'):
    pipeline.load(copy, skip_bad=True)


def change_manifest(folder, **changes):
  manifest = dataclasses.replace(manifests.read(folder), **changes)
  manifests.write(folder, manifest)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(moments_shape=(4, 8, 4)), 'record 0: cannot reshape'),
        (dict(image_size=16), 'record 0: image of 8x8 pixels, the manifest says 16x16'),
        (dict(num_classes=4), r'record \d+: label \d out of range \[0, 4\)'),
        (dict(latent_std=(5.0, 5.0)), 'the manifest says 5'),
    ],
)
def test_a_manifest_of_other_records_is_refused(copy, changes, message):
  change_manifest(copy, **changes)
  with pytest.raises(errors.DataError, match=message):
    pipeline.load(copy)
