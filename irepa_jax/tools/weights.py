"""Weights in and out: what a file holds, official checkpoints, encoders.

  python -m irepa_jax.tools.weights show FILE
  python -m irepa_jax.tools.weights import FILE --config=configs/sit_xl.py:irepa \
      --workdir=runs/imported
  python -m irepa_jax.tools.weights export --workdir=runs/xl --out=xl.pt
  python -m irepa_jax.tools.weights encoder all [--markdown]

`import` makes a run directory of an official iREPA, REPA or SiT checkpoint: it
can be sampled, and continued by irepa_jax.main. `export` writes the official
layout: model, ema, args and steps to .pt, the average alone to .safetensors.
"""

import contextlib
import json

from absl import flags
import numpy as np

from irepa_jax import build
from irepa_jax import cli
from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.distributed import sharding
from irepa_jax.jobs import official
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup
from irepa_jax.jobs import train
from irepa_jax.models import autoencoders
from irepa_jax.runs import directory
from irepa_jax.weights import files

SHOWN = 40  # keys of a section


def show(file):
  """Prints the sections, keys, shapes and the hash of a path or hub id."""
  path = files.fetch(file)
  content = files.read(path)
  print(f'{path}: {path.stat().st_size:,} bytes, sha256 {weights.sha256(path)}')
  _show(content, '')


def import_(file, config, workdir, *, latent_statistics=''):
  """Makes a run directory of an official checkpoint.

  Args:
    file: path or hub id.
    config: of the experiment that it continues.
    workdir: new.
    latent_statistics: official file, where the autoencoder has none published.
  """
  content = files.read(files.fetch(file))
  mesh = sharding.make_mesh(allow_subset=True)
  built = build.experiment(config)
  if official.double_output(official.sections(content)[0]):
    built = built._replace(
        model=built.model.clone(out_channels=2 * built.model.channels)
    )
  state, missing = official.to_state(built, config, content)
  shapes = setup.abstract(built, config, mesh).state
  meta = _meta(config, built, latent_statistics)
  with contextlib.ExitStack() as stack:
    stack.enter_context(
        directory.open_(
            workdir,
            config.to_dict(),
            state_bytes=manager.state_bytes(shapes),
        )
    )
    saved = train.open_checkpoints(config, workdir)
    stack.callback(saved.close)
    step = int(state.step)
    saved.save(step, sharding.put(state, sharding.of(shapes)), meta)
  print(f'{workdir}: step {step}')
  for part in missing:
    print(f'not in the file: {part}')


def export(workdir, out, *, ema=0, step=None):
  """Writes a run in the official layout; OUT ends in .pt or .safetensors.

  ema: which average, from 0; step: of the checkpoint, None is the newest.
  """
  run = saved_run.open_(workdir)
  mesh = sharding.make_mesh(allow_subset=True)
  average, meta = saved_run.load(run, mesh, ema=ema, step=step)
  params, _ = saved_run.load_params(run, mesh, step=meta['step'])
  content = official.from_state(
      run.built,
      params,
      average,
      steps=meta['step'],
      args=json.loads(run.config.to_json()),
  )
  if str(out).endswith('.safetensors'):
    files.write_safetensors(out, content['ema'])
  else:
    files.write_torch(out, content)
  print(f'{out}: step {meta["step"]}, {len(content["ema"])} arrays')


def encoder_table(name):
  """Prints what is known of one encoder, or of 'all', as a table."""
  rows = encoders.table(None if name == 'all' else [name])
  columns = [k for k in rows[0] if any(r[k] not in (None, '') for r in rows)]
  text = [columns] + [
      ['' if row[k] is None else str(row[k]) for k in columns] for row in rows
  ]
  wide = [max(len(line[i]) for line in text) for i in range(len(columns))]
  for line in text:
    print(
        '  '.join(f'{v:{w}}' for v, w in zip(line, wide, strict=True)).rstrip()
    )


def encoder_markdown(name):
  """Returns the lines of the same as a Markdown table, of docs/encoders.md."""
  names = encoders.names() if name == 'all' else [name]
  large = {r['name']: r for r in encoders.table(names, resolution=512)}
  heads = 'name|tokens|width|GFLOP|at 512|M parameters|licence|source|input'
  lines = [heads.split('|'), ['---'] * (heads.count('|') + 1)]
  for row in encoders.table(names):
    at_512 = large[row['name']]
    licence = row['licence'] + (', gated' if row['gated'] else '')
    size = at_512['gflops'] if at_512['tokens'] else 'refused'
    values = [row[k] for k in ('name', 'tokens', 'width', 'gflops')]
    values += [size, row['megaparams'] or None, licence, row['source']]
    lines.append(['' if v is None else str(v) for v in [*values, row['note']]])
  return [f'| {" | ".join(line)} |' for line in lines]


def _meta(config, built, statistics):
  """Returns the meta of an imported checkpoint: its data set is not known."""
  bias, scale = built.autoencoder.bias, built.autoencoder.scale
  if statistics:
    bias, scale = autoencoders.read_statistics(statistics)
  if scale is None:
    raise errors.UsageError(
        f'the latent statistics of {config.autoencoder} are not published with'
        ' it: give --latent_statistics=FILE'
    )
  return {
      'seed': config.seed,
      'data': '',
      'autoencoder': config.autoencoder,
      'autoencoder_sha256': '',
      'bias': list(bias),
      'scale': list(scale),
      'class_names': [],
  }


def _show(content, prefix):
  """Prints arrays by name, then sections by name."""
  arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray)}
  if arrays:
    count = sum(v.size for v in arrays.values())
    print(f'{prefix or "state dict"}: {len(arrays)} arrays, {count:,} elements')
  for name, value in list(arrays.items())[:SHOWN]:
    print(f'  {name}  {value.dtype}{list(value.shape)}')
  if len(arrays) > SHOWN:
    print(f'  ... and {len(arrays) - SHOWN} more')
  for name, value in content.items():
    if isinstance(value, dict):
      _show(value, f'{prefix}/{name}' if prefix else str(name))
    elif name not in arrays:
      print(f'{prefix + "/" if prefix else ""}{name}: {value!r}'[:200])


def define_flags():
  """Defines the flags of the command line."""
  cli.define_config()
  flags.DEFINE_string('workdir', '', 'Run directory.')
  flags.DEFINE_string('out', '', 'File that export writes.')
  flags.DEFINE_integer('ema', 0, 'Average that export writes, from 0.')
  flags.DEFINE_integer(
      'step', None, 'Checkpoint of export; default the newest.'
  )
  flags.DEFINE_bool('markdown', False, 'Print encoders for a web page.')
  flags.DEFINE_string(
      'latent_statistics', '', 'Official latents-stats file for import.'
  )


def main(args):
  """Runs one subcommand; returns the exit status."""
  v = flags.FLAGS
  match args[1:]:
    case ['show', file]:
      show(file)
    case ['import', file] if v.config and v.workdir:
      import_(file, v.config, v.workdir, latent_statistics=v.latent_statistics)
    case ['export'] if v.workdir and v.out:
      export(v.workdir, v.out, ema=v.ema, step=v.step)
    case ['encoder', name] if v.markdown:
      print('\n'.join(encoder_markdown(name)))
    case ['encoder', name]:
      encoder_table(name)
    case _:
      raise errors.UsageError(
          'usage: weights show FILE | import FILE --config=FILE --workdir=DIR |'
          ' export --workdir=RUN --out=FILE | encoder NAME; see --help'
      )
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
