"""Tables: which columns are taken, and rows that lack an image or a label."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.data import images
from irepa_jax.data import sources
from irepa_jax.data import tables
from irepa_jax.jobs import prepare

CLASSES = datasets.ClassLabel(names=['ant', 'bee'])
COUNT = 8


def png(value):
  file = io.BytesIO()
  PIL.Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, 'PNG')
  return file.getvalue()


def picture(value):
  return {'bytes': png(value), 'path': None}


def table(folder, kinds, **columns):
  """Saves a table; image and label are filled in where they are not given."""
  kinds = {'image': datasets.Image(), 'label': CLASSES} | kinds
  kinds = {k: v for k, v in kinds.items() if v is not None}
  usual = {'image': [picture(i) for i in range(COUNT)],
           'label': [i % 2 for i in range(COUNT)]}  # fmt: skip
  rows = {k: columns.get(k, usual.get(k)) for k in kinds}
  rows = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
  rows.save_to_disk(folder / 'in')
  return f'arrow:{folder}/in'


def value(example):
  return int(images.decode(example.image)[0, 0, 0])


def prepared(spec, folder):
  return prepare.prepare(
      spec, folder / 'out', image_size=8, autoencoder='haar', batch_size=1,
      max_skipped=0.5, say=lambda line: None,
  )  # fmt: skip


# Rows ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'image',
    [
        None,
        {'bytes': b'', 'path': None},
        {'bytes': b'\x89PNG', 'path': None},
        {'bytes': b'no image', 'path': 'a.png'},
    ],
)
def test_a_row_without_an_image_is_skipped_counted_and_named(tmp_path, image):
  rows = [image if i == 3 else picture(i) for i in range(COUNT)]
  spec = table(tmp_path, {}, image=rows)
  manifest = prepared(spec, tmp_path)
  assert (manifest.count, manifest.skipped) == (COUNT - 1, 1)
  (line,) = (tmp_path / 'out/skipped.txt').read_text().splitlines()
  assert line.startswith(f'{spec} row 3\t')
  pictures = inputs.open_pictures(spec, 8)
  with pytest.raises(errors.DataError, match='row 3: '):
    pictures.read(3)


@pytest.mark.parametrize(
    'image, hint',
    [
        ({'bytes': None, 'path': ''}, 'no image'),
        ({'bytes': None, 'path': '/no/such/file.png'}, 'No such file'),
        ({'bytes': b'', 'path': 'https://example.com/a.png'}, 'No such file'),
        ({'bytes': None, 'path': 'a\0b'}, 'null byte'),
    ],
)
def test_a_path_that_cannot_be_read_is_an_unreadable_image(image, hint):
  columns = tables.Columns('image', 'label', '')
  rows = [{'image': image, 'label': 0}]
  with pytest.raises(errors.DataError, match=hint):
    tables.Table('t', rows, columns, (), '')[0]


@pytest.mark.parametrize(
    'kind, odd',
    [
        (datasets.Value('int64'), None),
        (CLASSES, None),
        (datasets.Value('float64'), float('nan')),
        (datasets.Value('float32'), 0.5),
        (datasets.Value('string'), None),
    ],
)
def test_a_row_without_a_label_is_skipped_counted_and_named(tmp_path, kind, odd):
  whole = str if kind == datasets.Value('string') else int
  labels = [odd if i == 5 else whole(i % 2) for i in range(COUNT)]
  manifest = prepared(table(tmp_path, {'label': kind}, label=labels), tmp_path)
  assert (manifest.count, manifest.skipped, manifest.num_classes) == (7, 1, 2)
  assert 'row 5\t' in (tmp_path / 'out/skipped.txt').read_text()


@pytest.mark.parametrize(
    'kind, labels, wanted',
    [
        (datasets.Value('string'), ['pig', 'cat', 'é', 'cat'] * 2, [1, 0, 2, 0] * 2),
        (datasets.Value('large_string'), list('baba' * 2), [1, 0, 1, 0] * 2),
        (datasets.Value('bool'), [True, False] * 4, [1, 0] * 4),
        (datasets.Value('uint8'), [3, 1] * 4, [3, 1] * 4),
        (datasets.Value('float64'), [2.0, 0.0] * 4, [2, 0] * 4),
    ],
)
def test_labels_of_other_types_are_whole_numbers(tmp_path, kind, labels, wanted):
  source = sources.create(table(tmp_path, {'label': kind}, label=labels))
  assert [source[i].label for i in range(COUNT)] == wanted
  words = isinstance(labels[0], str)
  assert source.class_names == (tuple(sorted(set(labels))) if words else ())


@pytest.mark.parametrize(
    'kind, labels',
    [
        (datasets.List(datasets.Value('int64')), [[0, 1]] * COUNT),
        (datasets.List(CLASSES), [[0]] * COUNT),
        (datasets.Value('binary'), [b'a'] * COUNT),
        ({'id': datasets.Value('int64')}, [{'id': 1}] * COUNT),
        (datasets.Value('date32'), [None] * COUNT),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, kind, labels):
  spec = table(tmp_path, {'label': kind}, label=labels)
  with pytest.raises(errors.DataError, match="'label' is no class, but"):
    sources.create(spec)


@pytest.mark.parametrize(
    'kind, rows',
    [
        (datasets.Value('string'), ['a.png'] * COUNT),
        (datasets.Array3D((8, 8, 3), 'uint8'), [np.zeros((8, 8, 3), np.uint8)] * COUNT),
        (datasets.List(datasets.Value('float32')), [[0.5]] * COUNT),
    ],
)
def test_columns_that_hold_no_files_are_refused(tmp_path, kind, rows):
  spec = table(tmp_path, {'image': kind}, image=rows)
  with pytest.raises(errors.DataError, match=r"'image' holds no image files.*cast"):
    sources.create(spec)


def test_files_may_be_plain_bytes(tmp_path):
  kind = datasets.Value('binary')
  rows = [png(i) for i in range(COUNT - 2)] + [None, b'']
  source = sources.create(table(tmp_path, {'image': kind}, image=rows))
  assert [value(source[i]) for i in range(3)] == [0, 1, 2]
  for i in (6, 7):
    with pytest.raises(errors.DataError, match='no image'):
      source[i]


# Columns ------------------------------------------------------------------------


MORE = [picture(100 + i) for i in range(COUNT)]
ONES = [1] * COUNT


def test_of_several_the_usual_name_is_taken_and_the_others_told(tmp_path):
  kinds = {'mask': datasets.Image(), 'coarse': CLASSES}
  spec = table(tmp_path, kinds, mask=MORE, coarse=ONES)
  source = sources.create(spec)
  assert value(source[2]) == 2 and source[2].label == 0
  assert source.left_out == (
      'column mask (images are those of image; ,image=NAME takes others);'
      ' column coarse (labels are those of label; ,label=NAME takes others)'
  )
  assert source.left_out in inputs.open_pictures(spec, 8).describe()
  other = sources.create(f'{spec},image=mask,label=coarse')
  assert value(other[2]) == 102 and other[2].label == 1
  assert other.left_out == '' and other.fingerprint != source.fingerprint


@pytest.mark.parametrize(
    'kinds, columns, named',
    [
        (
            {'image': None, 'a': datasets.Image(), 'b': datasets.Image()},
            {'a': MORE, 'b': MORE},
            'which column is the image. a, b; choose with ,image=NAME',
        ),
        (
            {'img': datasets.Image()},
            {'img': MORE},
            'which column is the image. image, img',
        ),
        (
            {'label': None, 'fine': CLASSES, 'coarse': CLASSES},
            {'fine': ONES, 'coarse': ONES},
            'which column is the label. fine, coarse; choose with ,label=NAME',
        ),
        (
            {'label': None, 'class': datasets.Value('int64'),
             'target': datasets.Value('int64')},
            {'class': ONES, 'target': ONES},
            'which column is the label. class, target',
        ),
        (
            {'label': None, 'species': datasets.Value('int64')},
            {'species': ONES},
            'no ClassLabel column, nor one called label .*but image, species',
        ),
    ],
)  # fmt: skip
def test_it_is_never_guessed(tmp_path, kinds, columns, named):
  spec = table(tmp_path, kinds, **columns)
  with pytest.raises(errors.DataError, match=named):
    sources.create(spec)
  wanted = 'image' if 'is the image' in named else 'label'
  column = next(iter(columns))
  assert len(sources.create(f'{spec},{wanted}={column}')) == COUNT


def test_a_column_of_a_usual_name_beside_one_of_the_type_is_told(tmp_path):
  kinds = {'label': datasets.Value('int64'), 'kind': CLASSES}
  source = sources.create(table(tmp_path, kinds, kind=ONES))
  assert source[0].label == 1 and 'column label (labels are those of kind' in source.left_out


def test_a_column_that_is_not_there_is_named(tmp_path):
  spec = table(tmp_path, {})
  for choice in ('image=photo', 'label=photo'):
    with pytest.raises(errors.DataError, match="no column 'photo': image, label"):
      sources.create(f'{spec},{choice}')


@pytest.mark.parametrize('name', ['in[1]', 'a,label=b', 'x:y', 'a%20b', 'back\\s'])
def test_folders_of_any_name(tmp_path, name):
  table(tmp_path, {})
  (tmp_path / 'in').rename(tmp_path / name)
  source = sources.create(f'arrow:{tmp_path}/{name}')
  assert [source[i].label for i in range(3)] == [0, 1, 0]


def test_a_choice_stands_behind_the_split(tmp_path):
  assert tables.choices('a:train,image=x,label=y') == (
      'a:train', {'image': 'x', 'label': 'y'}
  )
  assert tables.choices('a,b') == ('a,b', {})


# tfds ---------------------------------------------------------------------------


class Odd(tfds.core.GeneratorBasedBuilder):
  """Two images and three labels a row, of which one is words."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(encoding_format='png'),
            'depth': tfds.features.Image(encoding_format='png'),
            'fine': tfds.features.ClassLabel(num_classes=3),
            'coarse': tfds.features.ClassLabel(names=['p', 'q']),
            'text': tfds.features.Text(),
            'several': tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
        }),
    )

  def _split_generators(self, manager):
    row = lambda i: {
        'image': io.BytesIO(png(i)), 'depth': io.BytesIO(png(50 + i)),
        'fine': i, 'coarse': i % 2, 'text': 'a', 'several': [0, 1],
    }  # fmt: skip
    return {'train': ((i, row(i)) for i in range(3))}

  def _generate_examples(self):
    raise NotImplementedError


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
  root = tmp_path_factory.mktemp('tfds[1]')
  builder = Odd(data_dir=root, file_format='array_record')
  builder.download_and_prepare()
  return f'tfds:{builder.data_dir}'


def test_tfds_columns_are_chosen_alike(odd):
  with pytest.raises(errors.DataError, match='label. coarse, fine|label. fine, coarse'):
    sources.create(odd)
  source = sources.create(f'{odd},label=coarse')
  assert source.class_names == ('p', 'q') and 'column depth' in source.left_out
  seen = sorted((value(source[i]), source[i].label) for i in range(3))
  assert seen == [(0, 0), (1, 1), (2, 0)]
  deep = sources.create(f'{odd}:train,image=depth,label=fine')
  assert sorted(value(deep[i]) for i in range(3)) == [50, 51, 52]


@pytest.mark.parametrize(
    'choice, hint',
    [
        ('label=text', "'text' is no class"),
        ('label=several', "'several' is no class"),
        ('label=image', "'image' is no class"),
        ('label=fine,image=fine', "'fine' holds no image files"),
        ('label=none', "no column 'none'"),
    ],
)
def test_tfds_columns_of_other_types_are_refused(odd, choice, hint):
  with pytest.raises(errors.DataError, match=hint):
    sources.create(f'{odd},{choice}')
