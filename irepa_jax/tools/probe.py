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

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.evals import probe as probes
from irepa_jax.jobs import probe
from irepa_jax.jobs import run_tokens

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
SHARED = (  # with jobs.probe.accuracies
    'data', 'test', 'held_out', 'encoders', 'runs', 'image_size', 'limit',
    'batch_size', 'seed',
)  # fmt: skip


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
  probe.probe(
      v.out,
      settings,
      places=run_tokens.places(v.blocks, v.times),
      fit=classifier(v),
      **{name: settings[name] for name in SHARED},
  )
  return 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
