"""Names of files: any letters that a file system allows."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irepa_jax import errors
from irepa_jax.analysis import report
from irepa_jax.checkpoints import manager
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.evals import generate
from irepa_jax.evals import parts
from irepa_jax.jobs import prepare
from irepa_jax.names import file_names
from irepa_jax.runs import directory
from irepa_jax.weights import files

LATIN = os.fsdecode(b'caf\xe9')  # not UTF-8
ODD = ('sweep{[0-9]}', 'back\\slash', 'who?*', "a'b\"c $(x) `y`", LATIN, 'a\nb')
STATE = {'a': jnp.arange(4.0), 'b': {'c': jnp.ones((2, 3), jnp.int32)}}


@pytest.mark.parametrize('name', ODD)
def test_checkpoints_are_read_again(tmp_path, name):
  folder = tmp_path / name / 'checkpoints'
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), STATE
  )
  for step in (1, 2):
    saved = manager.Checkpoints(folder, keep=1)
    found = saved.restore(wanted)
    assert (found is None) == (step == 1)
    saved.save(step, STATE, {})
    saved.close()
  assert manager.steps(folder) == [2]
  tree, meta = manager.restore_item(folder, 'b')
  assert meta['step'] == 2
  np.testing.assert_array_equal(tree['c'], STATE['b']['c'])
  assert [p.name for p in folder.iterdir()] == ['2']  # real files, in place
  assert folder.is_dir() and not folder.is_symlink()


@pytest.mark.parametrize('name', ODD)
def test_parts_and_records_and_weights_are_found(tmp_path, name):
  folder = tmp_path / name
  parts.claim(folder / 'parts', {})
  fields = dict.fromkeys(generate.Part._fields)
  fields |= {'numbers': np.arange(2), 'labels': np.zeros(2, int)}
  parts.write(folder / 'parts', generate.Part(**fields))
  assert list(parts.missing(folder / 'parts', 3)) == [2]
  prepare.prepare(
      'digits', folder / 'data', image_size=16, autoencoder='haar', max_images=4,
      batch_size=1, say=lambda line: None,
  )  # fmt: skip
  assert len(pipeline.load(folder / 'data', verify=True)) == 4
  for suffix, write in (
      ('safetensors', files.write_safetensors), ('pt', files.write_torch)
  ):
    write(folder / f'w.{suffix}', {'x': np.arange(3.0)})
    np.testing.assert_array_equal(
        files.read(folder / f'w.{suffix}')['x'], np.arange(3.0)
    )


@pytest.mark.parametrize('name', ODD)
def test_tables_are_utf8_with_a_line_per_row(tmp_path, name):
  rows = [{'image': name, 'lds': 1.5}, {'image': 'a,b', 'lds': 2.0}]
  report.write_csv(tmp_path / 'a.csv', rows)
  lines = (tmp_path / 'a.csv').read_text(encoding='utf-8').splitlines()
  assert len(lines) == 3
  report.write_json(tmp_path / 'a.json', rows)
  assert json.loads((tmp_path / 'a.json').read_text())[0]['image'] == name


def test_a_plain_folder_is_itself_and_a_link_is_made_anew(tmp_path):
  assert file_names.plain(tmp_path / 'a b#é,1') == tmp_path / 'a b#é,1'
  for name in ('x[1]', 'x[2]'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'f').write_text(name)
    link = file_names.plain(tmp_path / name)
    link.unlink()
    assert file_names.plain(tmp_path / name) == link
    assert (link / 'f').read_text() == name and file_names.is_plain(link)


def test_a_folder_that_cannot_be_linked_is_refused(tmp_path, monkeypatch):
  odd = tmp_path / 'tmp[1]'
  odd.mkdir()
  monkeypatch.setattr('tempfile.gettempdir', lambda: str(odd))
  with pytest.raises(errors.UsageError, match='set TMPDIR'):
    file_names.plain(tmp_path / 'a*')
  monkeypatch.setattr('tempfile.gettempdir', lambda: str(tmp_path / 'none'))
  with pytest.raises(errors.UsageError, match='choose another name'):
    file_names.plain(tmp_path / 'a*')


@pytest.mark.parametrize(
    'text', ['~/x', '--out=~/x', 'folder:~/x', 'dinov2-vit-b@~/x', 'a,~/x', '~']
)
def test_the_home_directory_is_meant(text, monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  assert file_names.expand(text) == text.replace('~', '/h')


@pytest.mark.parametrize('text', ['a~/x', '--note=~1e-4', 'x~', './~/x', 'a/~'])
def test_other_tildes_stay(text):
  assert file_names.expand(text) == text
  assert file_names.check(text) == text


@pytest.mark.parametrize('path', ['~/x', '~', '~nobody_of_this_name/x'])
@pytest.mark.parametrize(
    'use',
    [
        directory.check_scheme,
        manifests.check_local,
        lambda path: parts.claim(path, {}),
        lambda path: files.write_torch(f'{path}/a.pt', {}),
    ],
)
def test_a_folder_called_home_is_never_made(tmp_path, monkeypatch, use, path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UsageError, match='write the path out'):
    use(path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('workdir', ['gs://b/a[1]', 's3://b/a*', 'gs://b/c?'])
def test_patterns_in_a_bucket_are_refused(workdir):
  with pytest.raises(errors.UsageError, match='pattern'):
    directory.check_scheme(workdir)


@pytest.mark.parametrize('workdir', ['/gs/runs/a', '/s3/b', '/az/c'])
def test_a_local_folder_is_no_bucket(workdir):
  with pytest.raises(errors.UsageError, match=f'write /{workdir}'):
    directory.check_scheme(workdir)
  directory.check_scheme(f'/{workdir}')


def test_names_are_told_as_one_line_of_text():
  assert file_names.shown(LATIN) == 'caf\\xe9'
  assert file_names.shown('a\tb\nc\x1b') == 'a\\tb\\nc\\x1b'
  assert file_names.shown('é 🐈,|') == 'é 🐈,|'


@pytest.mark.parametrize('name', ['checkpoint', 'convert'])
def test_names_of_version_0_1_without_importing_jax(name):
  code = (
      'import sys, irepa_jax; assert "jax" not in sys.modules;'
      f'from irepa_jax import {name}; print({name}.__name__)'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True,
      cwd=pathlib.Path(__file__).parents[1],
  )  # fmt: skip
  assert done.stdout.startswith('irepa_jax.')


def test_an_unknown_name_is_no_attribute():
  import irepa_jax

  assert not hasattr(irepa_jax, 'trainer')
