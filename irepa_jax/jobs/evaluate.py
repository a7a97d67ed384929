"""An evaluation from end to end: networks, reference, samples, one JSON.

Of a run the images are made first, and only their features are kept: a killed
evaluation continues where it stopped, and one whose result is there is not made
again. Called by every process; the first one scores and writes.
"""

import hashlib
import json

from etils import epath

from irepa_jax import errors
from irepa_jax.distributed import preemption
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.evals import encoder_spaces
from irepa_jax.evals import generated
from irepa_jax.evals import image_sets
from irepa_jax.evals import judge as judges
from irepa_jax.evals import parts
from irepa_jax.evals import references
from irepa_jax.evals import spaces as spaces_lib
from irepa_jax.evals import statistics
from irepa_jax.jobs import reconstructions as trips
from irepa_jax.jobs import sample
from irepa_jax.jobs import saved_run
from irepa_jax.names import places

INCEPTION = spaces_lib.INCEPTION


def evaluate(
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
    reconstructions=False,
    lpips_weights='',
    **judging,
):
  """Scores samples or a run; returns the exit status, 75 when told to stop.

  Args:
    samples: npz, folder or data set; or
    workdir: of a run, from which `count` images are made.
    reference: npz, folder or data set.
    write_reference: npz that gets the statistics of the reference.
    out: path of the JSON.
    count, step, ema: images of a run, its checkpoint (None: the newest) and
      moving average.
    settings: fields of the configuration that replace those of the run.
    reconstructions: instead of new images, those of the reference after a round
      trip through the autoencoder of the run; lpips_weights: of
      reconstructions.of_run.
    **judging: of open_judge.
  """
  _check_flags(samples, workdir, reference, write_reference, out, count)
  if reconstructions and not (workdir and reference):
    raise errors.UsageError(
        '--reconstructions needs --workdir=RUN, whose autoencoder it is, and'
        ' --reference with the images'
    )
  _try_outputs(workdir, out, write_reference)
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
  elif reconstructions:
    trips.of_run(
        judge, run, step=step, ema=ema, lpips_weights=lpips_weights, out=out
    )
  elif run:
    loaded = sample.load(run, judge.mesh, ema=ema, step=step)
    found = of_run(judge, run, loaded, count=count, out=out)
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


def _try_outputs(workdir, out, write_reference):
  """Raises UsageError where the result could not be written."""
  if write_reference:
    processes.on_first(lambda: places.try_file(write_reference))
  if out:
    processes.on_first(lambda: places.try_file(out))
  elif workdir:
    processes.on_first(lambda: places.try_folder(f'{workdir}/evaluations'))


def _side(run, images):
  """Returns (height, width) of the samples; None without any."""
  if run:
    return (run.config.image_size,) * 2
  return images and images.side


def open_judge(
    reference='',
    *,
    spaces=(INCEPTION,),
    inception='',
    side=None,
    is_splits=0,
    half_distances=False,
    reference_rows=references.KEPT,
    batch_size=256,
):
  """Opens networks and reference; everything wrong with them is told here.

  Args:
    reference: npz, folder or data set; '' is none.
    spaces: names of networks, as of `open_space`.
    inception: path or hub id of its weights; '' is the published file.
    side: (height, width) of the samples; None without samples.
    is_splits, half_distances: of evaluate.compare.
    reference_rows: of references.summarise.
    batch_size: images at a time on all devices.
  """
  if is_splits < 0 or reference_rows < 0 or batch_size < 1:
    raise errors.UsageError(
        f'is_splits {is_splits} and reference_rows {reference_rows} are 0 or'
        f' more, batch_size {batch_size} 1 or more'
    )
  if not spaces:
    raise errors.UsageError('--spaces names no network')
  opened = references.open_(reference) if reference else None
  if opened and side:
    references.check_side(opened, side)
  side = side or (opened and references.resolution(opened))
  mesh = sharding.make_mesh()
  networks = tuple(open_space(text, inception, side, mesh) for text in spaces)
  if opened:
    references.check_spaces(opened, networks)
  if opened and side:
    references.check_widths(opened, generated.layout(networks, side, mesh))
  return judges.Judge(
      mesh,
      networks,
      opened,
      splits=is_splits,
      half=half_distances,
      kept=reference_rows,
      batch_size=batch_size,
  )


def open_space(text, inception, side, mesh):
  """Opens 'inception', 'dinov2', 'clip' or an encoder; NAME@WEIGHTS.

  side: (height, width) of the images; None is not known.
  """
  name, _, source = text.partition('@')
  if name == INCEPTION:
    return spaces_lib.inception(source or inception, mesh=mesh)
  return encoder_spaces.open_(text, side=side, mesh=mesh)


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
  return finish(judge, lambda: summary, lambda: about(images), out)


def about(images):
  """Returns what is known of finished images."""
  return made_by(images.origin) | {
      'images': images.origin,
      'sha256': images.sha256(),
      'count': images.count,
      'resolution': images.side,
  }


def made_by(origin):
  """Returns what tools.sample has told beside its npz; {} without."""
  path = epath.Path(origin).with_suffix('.json')
  if not origin.endswith('.npz') or not path.exists():
    return {}
  try:
    found = json.loads(path.read_text())
  except ValueError:
    return {}
  return found if isinstance(found, dict) and 'sampler' in found else {}


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
      told | {'spaces': {s.name: s.sha256 for s in judge.spaces}},
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
  widths = generated.layout(judge.spaces, side, judge.mesh)
  found = finish(
      judge,
      lambda: generated.summarise(parts.read(folder, count), count, widths),
      lambda: told | {'resolution': side},
      path,
  )
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
      found.update(judges.read(path))

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


def finish(judge, summarise, about, out):
  """Scores on the first process; every process returns the figures.

  summarise: () -> statistics.Summary of the samples; about: () -> what they
  are. Both are called on the first process.
  """
  found = {}

  def score():
    found.update(judge.record(summarise(), about()))
    print(judges.table(found))  # first: they are not lost with a full disk
    if out:
      judges.write(out, found)
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
