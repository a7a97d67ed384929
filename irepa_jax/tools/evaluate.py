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
npz with images or statistics, a folder, or a prepared data set. The result, with
every setting that moves a figure, is one JSON: --out, or in a run
evaluations/STEP-COUNT-HASH.json.
"""

import hashlib
import json

from absl import flags
from etils import epath

from irepa_jax import cli
from irepa_jax import distributed
from irepa_jax import errors
from irepa_jax import preemption
from irepa_jax import processes
from irepa_jax import saved_run
from irepa_jax import sharding
from irepa_jax.evals import evaluate
from irepa_jax.evals import generated
from irepa_jax.evals import image_sets
from irepa_jax.evals import parts
from irepa_jax.evals import references
from irepa_jax.evals import spaces
from irepa_jax.evals import statistics
from irepa_jax.tools import sample


def open_judge(
    reference='',
    *,
    inception='',
    side=None,
    is_splits=0,
    half_distances=False,
    reference_rows=references.KEPT,
    batch_size=256,
):
  """Opens networks and reference; everything wrong with them is told here.

  side: (height, width) of the samples.
  """
  if is_splits < 0 or reference_rows < 0 or batch_size < 1:
    raise errors.UsageError(
        f'is_splits {is_splits} and reference_rows {reference_rows} are 0 or'
        f' more, batch_size {batch_size} 1 or more'
    )
  spaces.inception_file(inception)
  opened = references.open_(reference) if reference else None
  if opened and side:
    references.check_side(opened, side)
  mesh = sharding.make_mesh()
  networks = (spaces.inception(inception, mesh=mesh),)
  if opened:
    references.check_spaces(opened, networks)
  return evaluate.Judge(
      mesh,
      networks,
      opened,
      splits=is_splits,
      half=half_distances,
      kept=reference_rows,
      batch_size=batch_size,
  )


def of_images(judge, images, out):
  """Scores finished images; writes and returns the result."""
  judge.open_reference()
  summary = statistics.from_images(
      judge.spaces,
      images,
      judge.mesh,
      batch_size=judge.batch_size,
      label='samples',
  )
  return finish(judge, summary, lambda: about(images), out)


def about(images):
  """Returns what is known of finished images."""
  beside = epath.Path(images.origin).with_suffix('.json')
  settings = {}
  if images.origin.endswith('.npz') and beside.exists():  # of tools.sample
    settings = json.loads(beside.read_text())
  return settings | {
      'images': images.origin,
      'sha256': images.sha256(),
      'count': images.count,
      'resolution': images.side,
  }


def of_run(judge, run, loaded, *, count, out=''):
  """Samples a run and scores the images; None when told to stop.

  A result with these settings that is already there is returned as it is.

  Args:
    judge: of open_judge.
    run: of saved_run.open_.
    loaded: of sample.load.
    count: images.
    out: path of the JSON; '' is below the run directory.
  """
  told = sample.described(run, loaded) | {'count': count}
  path = out or default_path(judge, run, told)
  if known := existing(judge, path, told):
    return known
  judge.open_reference()
  folder = f'{path.removesuffix(".json")}.parts'
  side = (run.config.image_size,) * 2
  done = sample.fill(
      folder,
      count,
      told | {'weights': [space.sha256 for space in judge.spaces]},
      generated.renderer(
          saved_run.renderer(run, loaded.meta, judge.mesh),
          judge.spaces,
          judge.mesh,
      ),
      loaded.params,
      batch_size=judge.batch_size,
      mesh=judge.mesh,
  )
  if not done:
    return None
  summary = None
  if processes.is_first():
    widths = generated.layout(judge.spaces, side)
    summary = generated.summarise(parts.read(folder, count), count, widths)
  found = finish(judge, summary, lambda: told | {'resolution': side}, path)
  parts.remove(folder)
  return found


def default_path(judge, run, told):
  """Returns evaluations/STEP-COUNT-HASH.json of a run."""
  text = json.dumps([told, _settings(judge)], sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  name = f'{told["step"]:07d}-{told["count"]}-{digest}.json'
  return f'{run.workdir}/evaluations/{name}'


def existing(judge, path, told):
  """Returns a result with the same settings, on all processes, or None."""
  found = {}

  def look():
    if epath.Path(path).exists():
      found.update(evaluate.read(path))

  processes.on_first(look)
  settings = _settings(judge)
  told = json.loads(json.dumps(told))
  same = found and found['settings'] == settings
  same = same and {k: found['samples'].get(k) for k in told} == told
  if not _agreed(same):
    return None
  if processes.is_first():
    print(f'{path} is there already')
  return _shared(found)


def finish(judge, summary, about, out):
  """Scores on the first process; every process returns the figures.

  about: () -> what the samples are, asked on the first process.
  """
  found = {}

  def score():
    found.update(judge.record(summary, about()))
    if out:
      evaluate.write(out, found)
    print(evaluate.table(found))
    print(f'-> {out}' if out else 'not written: no --out')

  processes.on_first(score)
  return _shared(found)


def _settings(judge):
  """The settings of the judge, the same on every process."""
  found = {}
  processes.on_first(lambda: found.update(judge.settings))
  return json.loads(processes.text_from_first(json.dumps(found)))


def _agreed(value):
  """Returns what the first process thinks."""
  return bool(processes.from_first([int(bool(value))], 1)[0])


def _shared(found):
  """Returns the figures of the first process on every other as well."""
  figures = {k: v for k, v in found.items() if isinstance(v, float)}
  told = json.loads(processes.text_from_first(json.dumps(figures)))
  return found or told


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
    **judging: of `open_judge`.
  """
  _check_flags(samples, workdir, reference, write_reference, count)
  run, images = None, None
  if workdir:
    run = saved_run.open_(workdir, **settings or {})
  elif samples:
    images = image_sets.open_(samples)
  judge = open_judge(reference, side=_side(run, images), **judging)
  if write_reference:
    write_statistics(judge, write_reference)
  if images:
    of_images(judge, images, out)
  elif run:
    loaded = sample.load(run, judge.mesh, ema=ema, step=step)
    if of_run(judge, run, loaded, count=count, out=out) is None:
      return preemption.EXIT_STATUS
  return 0


def write_statistics(judge, path):
  """Writes the statistics of the reference for reuse."""
  summary, reference = judge.open_reference(), judge.reference

  def save():
    statistics.write(
        path,
        summary,
        {
            'spaces': {space.name: space.sha256 for space in judge.spaces},
            'resolution': references.resolution(reference),
            'reference': references.described(reference, summary),
        },
    )
    print(f'{path}: statistics of {reference.path}')

  processes.on_first(save)


def _check_flags(samples, workdir, reference, write_reference, count):
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
  distributed.start()
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
