"""Scores images against a reference: FID, sFID, IS, precision, recall, KID.

  python -m irepa_jax.tools.evaluate --samples=samples.npz \\
      --reference=VIRTUAL_imagenet256_labeled.npz --inception=weights.pth
  python -m irepa_jax.tools.evaluate --workdir=runs/xl --count=50000 \\
      --reference=VIRTUAL_imagenet256_labeled.npz
  python -m irepa_jax.tools.evaluate --reference=data/imagenet256 \\
      --write_reference=imagenet256.npz
  python -m irepa_jax.tools.evaluate --workdir=runs/repa_e --reconstructions \\
      --reference=data/imagenet256_val

Samples are an ADM npz, a folder of images, a prepared data set, or a run: of a
run the images are made first, and only their features are kept (tools.sample
writes images). A killed command continues where it stopped. The reference is an
npz with images or statistics, a folder, or a prepared data set. --spaces adds
distances by other networks. The result, with every setting that moves a figure,
is one JSON: --out, or in a run evaluations/STEP-COUNT-HASH.json. With
--reconstructions the images of the reference go through the autoencoder of the
run: PSNR, LPIPS and the FID to themselves (rFID).
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import start
from irepa_jax.evals import references
from irepa_jax.evals import spaces
from irepa_jax.jobs import evaluate
from irepa_jax.tools import sample

OPTIONS = {
    'samples': (flags.DEFINE_string, '', 'npz, folder or prepared data.'),
    'workdir': (flags.DEFINE_string, '', 'Run from which images are made.'),
    'reference': (flags.DEFINE_string, '', 'npz, folder or prepared data.'),
    'write_reference': (flags.DEFINE_string, '', 'npz of its statistics.'),
    'out': (flags.DEFINE_string, '', 'JSON of the result.'),
    'count': (flags.DEFINE_integer, 50_000, 'Images from the run.'),
    'step': (flags.DEFINE_integer, None, 'Checkpoint; default the newest.'),
    'ema': (flags.DEFINE_integer, 0, 'Which moving average, from 0.'),
    'reconstructions': (
        flags.DEFINE_bool,
        False,
        'Score the autoencoder of the run on the images of the reference.',
    ),
    'lpips_weights': (
        flags.DEFINE_string,
        '',
        'VGG-16 and heads, comma separated; default the published files.',
    ),
}
JUDGING = {
    'spaces': (
        flags.DEFINE_list,
        [spaces.INCEPTION],
        'Networks: inception (FID), dinov2 (FD-DINOv2), clip (CMMD), or an'
        ' encoder by its name; NAME@WEIGHTS reads a path or hub id.',
    ),
    'inception': (
        flags.DEFINE_string,
        '',
        'Weights of Inception: path or hub id; default the published file.',
    ),
    'is_splits': (
        flags.DEFINE_integer,
        0,
        'Splits of the Inception Score: 0 is 5000 images each, in order (ADM);'
        ' 10 is as torch-fidelity, shuffled.',
    ),
    'half_distances': (
        flags.DEFINE_bool,
        False,
        'Precision and recall by float16 distances, as ADM.',
    ),
    'reference_rows': (
        flags.DEFINE_integer,
        references.KEPT,
        'Reference images for precision, recall and KID, spread evenly.',
    ),
    'batch_size': (flags.DEFINE_integer, 256, 'Images at a time, in all.'),
}


def define_judging():
  """Defines the flags about reference and networks."""
  for name, (define, default, text) in JUDGING.items():
    define(name, default, text)


def define_flags():
  """Defines the flags of the command line."""
  define_judging()
  for name, (define, default, text) in OPTIONS.items():
    define(name, default, text)
  for name, (define, text) in sample.SETTINGS.items():
    define(name, None, text + ' Default: that of the run.')


def main(args):
  """Runs the command; returns its exit status."""
  if args[1:]:
    raise errors.UsageError(f'unknown argument {args[1]!r}; see --help')
  values = flags.FLAGS.flag_values_dict()
  start.join()
  names = sample.SETTINGS
  settings = {k: values[k] for k in names if values[k] is not None}
  if settings and not values['workdir']:
    raise errors.UsageError(f'--{next(iter(settings))} is for a run: --workdir')
  return evaluate.evaluate(
      settings=settings, **{k: values[k] for k in (*OPTIONS, *JUDGING)}
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main)
