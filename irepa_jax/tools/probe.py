"""Linear probe of frozen tokens: of any encoder, of any block of a run.

  # encoders on a labelled set, a tenth of its images held out
  python -m irepa_jax.tools.probe --data=data/imagenet256 --limit=50000 \\
      --encoders=dinov2-vit-b,hog-vit-g16_d128

  # blocks of runs at several times; test images of their own
  python -m irepa_jax.tools.probe --data=folder:/data/imagenet/train \\
      --test=folder:/data/imagenet/val --runs=runs/xl --blocks=4,8,12 --times=0.5

One line per set of tokens, and all of them with their settings in OUT.json.
Tokens are averaged over each image and standardised (evals/probe.py). A run
never sees the label of an image: it gets the null label. `analyze similarity`
compares the same tokens by CKNNA and CKA.
"""

import functools
import pathlib

from absl import flags
import tqdm

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.analysis import inputs
from irepa_jax.analysis import report
from irepa_jax.analysis import representations
from irepa_jax.distributed import sharding
from irepa_jax.evals import probe as probes
from irepa_jax.jobs import run_tokens
from irepa_jax.jobs import saved_run

NO_LABEL = -1
METHODS = ('ridge', *probes.OPTIMISERS)
OPTIONS = {
    'data': (flags.DEFINE_string, '', 'A data set, folder:PATH, digits ...'),
    'test': (flags.DEFINE_string, '', 'Test images; empty: part of --data.'),
    'held_out': (flags.DEFINE_float, 0.1, 'That part.'),
    'encoders': (flags.DEFINE_list, [], 'NAME or NAME@WEIGHTS, several.'),
    'runs': (flags.DEFINE_list, [], 'Run directories.'),
    'blocks': (flags.DEFINE_list, [], 'Of runs, from 1; default: aligned.'),
    'times': (flags.DEFINE_list, ['0.5'], 'Of runs: 0 is data, 1 is noise.'),
    'image_size': (flags.DEFINE_integer, 0, '0: that of the runs, else 256.'),
    'limit': (flags.DEFINE_integer, 0, 'So many images, evenly spaced.'),
    'batch_size': (flags.DEFINE_integer, 32, 'Images at a time.'),
    'alpha': (flags.DEFINE_float, 1.0, 'ridge: weight of |W|^2.'),
    'learning_rate': (flags.DEFINE_float, 1e-2, 'adam, sgd.'),
    'epochs': (flags.DEFINE_integer, 100, 'adam, sgd.'),
    'probe_batch_size': (flags.DEFINE_integer, 1024, 'adam, sgd.'),
    'decay': (flags.DEFINE_float, 0.0, 'adam, sgd: weight of |W|^2 / 2.'),
    'seed': (flags.DEFINE_integer, 0, 'Of the split and of the order.'),
    'out': (flags.DEFINE_string, 'probe.json', 'Accuracies and settings.'),
}
SHARED = (  # with run()
    'data', 'test', 'held_out', 'encoders', 'runs', 'image_size', 'limit',
    'batch_size', 'seed',
)  # fmt: skip


def run(
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
  unit = mesh.shape[sharding.DATA]
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


def classifier(v):
  """Returns fit(train, num_classes) of the flags."""
  if v.method == 'ridge':
    return functools.partial(probes.ridge, alpha=v.alpha)
  return functools.partial(
      probes.softmax,
      optimiser=v.method,
      learning_rate=v.learning_rate,
      epochs=v.epochs,
      batch_size=v.probe_batch_size,
      decay=v.decay,
      seed=v.seed,
  )


def define_flags():
  """Defines the flags of the command line."""
  for name, (define, default, text) in OPTIONS.items():
    define(name, default, text)
  flags.DEFINE_enum('method', 'ridge', METHODS, 'Classifier.')


def main(args):
  """Runs the command; returns its exit status."""
  v = flags.FLAGS
  if args[1:] or not v.data:
    raise errors.UsageError('--data=IMAGES with labels is required; see --help')
  settings = {name: v[name].value for name in (*OPTIONS, 'method')}
  found = run(
      places=run_tokens.places(v.blocks, v.times),
      fit=classifier(v),
      **{name: settings[name] for name in SHARED},
  )
  rows = []
  for row in found:
    rows.append(row)
    print(line(row))
    write(v.out, {'settings': settings, 'probes': rows})
  return 0


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


if __name__ == '__main__':
  define_flags()
  cli.run(main)
