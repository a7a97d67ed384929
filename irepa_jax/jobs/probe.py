"""Linear probe of frozen tokens: of any encoder, of any block of a run.

Tokens are averaged over each image and standardised (evals/probe.py). A run
never sees the label of an image: it gets the null label.
"""

import pathlib

import tqdm

from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import report
from irepa_jax.analysis import representations
from irepa_jax.distributed import sharding
from irepa_jax.evals import probe as probes
from irepa_jax.jobs import run_tokens
from irepa_jax.jobs import saved_run

NO_LABEL = -1


def probe(out, settings, **chosen):
  """Prints and writes the accuracies, after each set of tokens.

  Args:
    out: path of the JSON.
    settings: of the command, written beside the accuracies.
    **chosen: of `accuracies`.
  """
  rows = []
  for row in accuracies(**chosen):
    rows.append(row)
    print(line(row))
    write(out, {'settings': settings, 'probes': rows})


def accuracies(
    data,
    *,
    encoders=(),
    runs=(),
    places=((None, 0.5),),
    test='',
    held_out=0.1,
    image_size=0,
    limit=0,
    batch_size=32,
    seed=0,
    fit,
):
  """Yields a dict of accuracies per set of tokens.

  Args:
    data: labelled images, as irepa_jax.analysis.inputs names them.
    encoders: NAME or NAME@WEIGHTS.
    runs: run directories; their newest checkpoint, first moving average.
    places: (block, t) of the runs: block from 1, None is the aligned one; t
      from 0, data, to 1, noise.
    test: held-out images; '' holds out a share of `data`.
    held_out: that share.
    image_size: 0 is that of the runs, or else 256 pixels.
    limit: images of each of data and test; 0 is all.
    batch_size: images at a time.
    seed: of the split.
    fit: (train, num_classes) -> probe.Linear.
  """
  mesh = sharding.make_mesh()
  opened = [saved_run.open_(path) for path in runs]
  size = run_tokens.image_size(opened, image_size)
  sets = [inputs.open_pictures(data, size, limit)]
  if test:
    sets.append(inputs.open_pictures(test, size, limit))
  unit = sharding.row_parts(mesh)
  batch_size = -(-batch_size // unit) * unit
  named = [
      (name, [load] * len(sets))
      for name, load in (
          representations.encoder(name, size, mesh) for name in encoders
      )
  ]
  for source in opened:
    for block, t in places:
      pairs = [run_tokens.candidate(source, mesh, p, block, t) for p in sets]
      named.append((pairs[0][0], [load for _, load in pairs]))
  if not named:
    raise errors.UsageError('name --encoders or --runs to probe')
  for name, loads in named:
    features = [
        probes.pooled(*tokens(name, load(), pictures, batch_size))
        for load, pictures in zip(loads, sets, strict=True)
    ]
    if not test:
      features = probes.split(*features, held_out, seed)
    yield {'tokens': name} | probes.probe(*features, fit)


def tokens(name, representation, pictures, batch_size):
  """Returns (encode, batches): no label is shown to what is probed."""
  count = -(-len(pictures) // batch_size)
  batches = inputs.batches(pictures, batch_size)
  blind = lambda b: b._replace(label=b.label * 0 + NO_LABEL)
  encode = lambda batch: representation.encode(blind(batch))
  return encode, tqdm.tqdm(batches, name, total=count, unit='batch')


def line(row):
  """Returns one line of text about a set of tokens."""
  best = ' '.join(f'{k} {row[k]:.4f}' for k in ('top1', 'top5') if k in row)
  return (
      f'{row["tokens"]}: {best} of {row["test_images"]} held-out images,'
      f' {row["classes"]} classes (training {row["train_top1"]:.4f} of'
      f' {row["train_images"]})'
  )


def write(path, content):
  """Writes the accuracies so far with every setting of the command."""
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(path, content)
  except OSError as error:
    raise errors.UsageError(f'--out={path}: {error}') from error
