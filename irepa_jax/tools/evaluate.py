"""Scores images against a reference: FID, sFID, IS, precision, recall, KID.

  python -m irepa_jax.tools.evaluate --samples=samples.npz \
      --reference=VIRTUAL_imagenet256_labeled.npz --inception=weights.pth
  python -m irepa_jax.tools.evaluate --workdir=runs/xl --count=50000 \
      --reference=VIRTUAL_imagenet256_labeled.npz
  python -m irepa_jax.tools.evaluate --reference=data/imagenet256 \
      --write_reference=imagenet256.npz

Samples are an ADM npz, a folder of images, a prepared data set, or a run: of a
run the images are made first, and only their features are kept (tools.sample
writes images). A killed command continues where it stopped. The reference is an
npz with images or statistics, a folder, or a prepared data set. --spaces adds
distances by other networks. The result, with every setting that moves a figure,
is one JSON: --out, or in a run evaluations/STEP-COUNT-HASH.json.
"""

from absl import flags
from etils import epath

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.distributed import start
from irepa_jax.evals import image_sets
from irepa_jax.evals import references
from irepa_jax.evals import spaces
from irepa_jax.jobs import evaluate
from irepa_jax.jobs import saved_run
from irepa_jax.tools import sample


def run_command(
    samples='',
    workdir='',
    *,
    reference='',
    write_reference='',
    out='',
    count=50_000,
    step=None,
    ema=0,
    settings=None,
    **judging,
):
  """Does what the flags say; returns the exit status, 75 when told to stop.

  Args:
    samples: npz, folder or data set; or
    workdir: of a run, from which `count` images are made.
    reference: npz, folder or data set.
    write_reference: npz that gets the statistics of the reference.
    out: path of the JSON.
    count, step, ema: images of a run, its checkpoint (None: the newest) and
      moving average.
    settings: fields of the run's configuration, see sample.SETTINGS.
    **judging: of evaluation.open_judge.
  """
  _check_flags(samples, workdir, reference, write_reference, out, count)
  run, images = None, None
  if workdir:
    run = saved_run.open_(workdir, **settings or {})
  elif samples:
    images = image_sets.open_(samples)
  judge = evaluate.open_judge(reference, side=_side(run, images), **judging)
  if write_reference:
    evaluate.write_statistics(judge, write_reference)
  if images:
    evaluate.of_images(judge, images, out)
  elif run:
    loaded = sample.load(run, judge.mesh, ema=ema, step=step)
    found = evaluate.of_run(judge, run, loaded, count=count, out=out)
    if found is None:
      return preemption.EXIT_STATUS
  return 0


def _check_flags(samples, workdir, reference, write_reference, out, count):
  if samples and workdir:
    raise errors.UsageError('--samples or --workdir, not both')
  if write_reference and not reference:
    raise errors.UsageError('--write_reference needs --reference')
  if write_reference and not write_reference.endswith('.npz'):
    raise errors.UsageError(
        f'write_reference is {write_reference}; it must end in .npz'
    )
  if not (samples or workdir or write_reference):
    raise errors.UsageError(
        '--samples=FILE.npz or a folder, or --workdir=RUN, or'
        ' --write_reference=FILE.npz is required; see --help'
    )
  if samples.endswith('.npz') and samples[:-4] == out.removesuffix('.json'):
    raise errors.UsageError(
        f'--out={out} would replace what tools.sample tells of the samples'
    )
  if count < 2:
    raise errors.UsageError(f'count is {count}; 2 or more')
  if samples and (epath.Path(samples) / 'config.json').exists():
    raise errors.UsageError(
        f'{samples} is a run directory: --workdir={samples}'
    )


def _side(run, images):
  """Returns (height, width) of the samples; None without any."""
  if run:
    return (run.config.image_size,) * 2
  return images and images.side


OPTIONS = {
    'samples': (flags.DEFINE_string, '', 'npz, folder or prepared data.'),
    'workdir': (flags.DEFINE_string, '', 'Run from which images are made.'),
    'reference': (flags.DEFINE_string, '', 'npz, folder or prepared data.'),
    'write_reference': (flags.DEFINE_string, '', 'npz of its statistics.'),
    'out': (flags.DEFINE_string, '', 'JSON of the result.'),
    'count': (flags.DEFINE_integer, 50_000, 'Images from the run.'),
    'step': (flags.DEFINE_integer, None, 'Checkpoint; default the newest.'),
    'ema': (flags.DEFINE_integer, 0, 'Which moving average, from 0.'),
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
  return run_command(
      settings=settings, **{k: values[k] for k in (*OPTIONS, *JUDGING)}
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main)
