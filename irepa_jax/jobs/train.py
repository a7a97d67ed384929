"""Assembles a run: from a configuration and a run directory to the loop.

The order is that of growing cost. First what can be refused within seconds:
the configuration, the mesh, the run directory, the data set, the weight files.
Then the state, restored or new; then the first step, which compiles.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from typing import Any
from typing import NamedTuple

from etils import epath
import jax

from irepa_jax import build
from irepa_jax import check
from irepa_jax import errors
from irepa_jax.checkpoints import manager
from irepa_jax.data import manifest as manifests
from irepa_jax.data import pipeline
from irepa_jax.distributed import peers
from irepa_jax.distributed import preemption
from irepa_jax.distributed import processes
from irepa_jax.distributed import sharding
from irepa_jax.jobs import compare
from irepa_jax.jobs import prepare
from irepa_jax.jobs import reports
from irepa_jax.jobs import setup
from irepa_jax.names import file_names
from irepa_jax.names import places
from irepa_jax.names.experiments import base
from irepa_jax.runs import directory
from irepa_jax.runs import logs
from irepa_jax.runs import throughput
from irepa_jax.train import loop


class Job(NamedTuple):
  """What is known of a run before any array is made."""

  config: Any
  workdir: str
  mesh: Any
  built: build.Experiment
  shapes: setup.Shapes
  data: pipeline.Dataset

  @property
  def stored(self):
    """Names of the encoders whose tokens are read from the records."""
    return setup.stored(self.built, self.config)


def run(config, workdir, *, check_only=False) -> int:
  """Trains, or only checks whether it could; returns the exit status.

  0: the run is complete; 75: preempted, and the same command continues it.
  Raises the errors of irepa_jax.errors.
  """
  with contextlib.ExitStack() as stack:
    job = open_job(config, workdir, stack, check_only=check_only)
    frozen = setup.load_frozen(job.built, config, job.mesh)
    start = setup.read_start(job.built, config)
    report = reports.Reports(job.built, config, job.mesh, job.data)
    if check_only:
      print('ok: configuration, mesh, run directory, data set, weights')
      return 0
    stop = preemption.Preemption(watchdog_s=config.watchdog_s)
    stack.callback(stop.close)
    checkpoints = open_checkpoints(config, workdir)
    stack.callback(checkpoints.close)
    state, k_train = restore_or_create(job, checkpoints, start)
    first = int(state.step)
    if first >= config.steps:
      print(f'run already complete ({first}/{config.steps})')
      return 0
    processes.on_first(
        lambda: directory.write_config(workdir, config.to_dict())
    )
    log = stack.enter_context(
        logs.Logs(
            workdir,
            total=config.steps,
            resume_step=first,
            wandb=config.wandb,
            config=config.to_dict(),
        )
    )
    batches = device_batches(job, first)
    stack.callback(batches.close)
    _introduce(job, first)
    _, status = loop.train(
        loop.Run(
            step=setup.compiled_together(
                setup.jit_step(job.built, config, job.mesh, job.data.manifest)
            ),
            batches=batches,
            frozen=frozen,
            key=k_train,
            total=config.steps,
            checkpoints=checkpoints,
            meta=meta(job),
            log=log,
            meter=meter(job),
            stop=stop,
            rate=functools.partial(build.learning_rate, config),
            describe=functools.partial(list_records, job),
            hooks=report.hooks(log, stop, workdir),
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            max_skipped=config.max_skipped,
            profile=(
                os.path.join(file_names.plain(workdir), 'profile'),
                config.profile_steps,
            ),
        ),
        state,
    )
    if status == 0 and report.metrics and processes.is_first():
      log.close()
      draw_curve(workdir, report.metrics)
    return status


def draw_curve(workdir, metrics):
  """Leaves the scores of a finished run as curve.png and curve.md."""
  compare.compare([workdir], os.path.join(workdir, 'curve'), metrics=metrics)


def open_job(config, workdir, stack, *, check_only=False) -> Job:
  """Checks the configuration, the mesh, the run directory and the data set.

  What has to be closed at the end is left to the ExitStack. With check_only the
  run directory is neither made nor locked, and nothing is written into it.
  """
  check.config(config)
  processes.agree({'config': config.to_dict()})
  mesh = setup.make_mesh(config)
  sharding.check_batch(config.batch_size, mesh, config.accumulate)
  built = build.experiment(config, mesh)
  shapes = setup.abstract(built, config, mesh)
  directory.check_scheme(workdir)
  processes.on_first(lambda: logs.require_wandb(config.wandb))
  folder = config.data
  if folder == 'digits':
    folder = os.path.join(workdir, 'data')
  # Without a checkpoint the directory is of no other configuration yet.
  saved = manager.steps(os.path.join(workdir, 'checkpoints'))
  known = {'fields': base.FIELDS, 'force': not saved or config.resume == 'force'}
  if check_only:
    processes.on_first(lambda: places.try_folder(workdir, 'workdir'))
    processes.on_first(
        lambda: directory.check_config(workdir, config.to_dict(), **known)
    )
    if config.data == 'digits':
      folder = stack.enter_context(tempfile.TemporaryDirectory())
  else:
    lock = directory.open_(
        workdir,
        config.to_dict(),
        state_bytes=manager.state_bytes(shapes.state),
        keep=config.keep,
        **known,
    )
    stack.enter_context(lock)
    peers.at_end(lock.release)
  data = open_data(config, built, folder)
  stack.callback(data.close)
  built = built._replace(optimizer=build.optimizer(config, len(data)))
  processes.agree({'data set': fingerprint(data.manifest)})
  return Job(config, str(workdir), mesh, built, shapes, data)


def open_data(config, built, folder):
  """Opens the data set and refuses one that contradicts the configuration.

  The embedded digits are prepared in the folder on the first start.
  """
  if config.data == 'digits':
    prepare.prepare(
        'digits',
        folder,
        image_size=config.image_size,
        autoencoder='none' if config.end_to_end else config.autoencoder,
        image_format='png',
    )
  cached = config.features == 'cached' and bool(built.encoders)
  codec, view, latents = built.autoencoder, None, {}
  if codec.stored:
    size, channels = built.model.size, built.model.channels
    latents = dict(latent_shape=(size, size, channels))
  else:
    view = functools.partial(
        manifests.of_images,
        name=codec.name,
        channels=codec.channels,
        cached=cached,
    )
  data = pipeline.load(
      folder, verify=config.verify_data, skip_bad=config.skip_bad, view=view
  )
  if latents:
    latents |= dict(bias=data.manifest.bias, scale=data.manifest.scale)
  manifests.check(
      data.manifest,
      image_size=config.image_size,
      num_classes=config.num_classes,
      autoencoder=config.autoencoder,
      encoders=[(encoder.name, '') for encoder in built.encoders],
      cached=config.features == 'cached',
      images_needed='image' in setup.batch_shapes(built, config),
      flips=config.flips,
      **latents,
      drop_colours=config.get('drop_colours', False),
  )
  return data


def open_checkpoints(config, workdir):
  """Returns the checkpoints of the run directory."""
  return manager.Checkpoints(
      os.path.join(workdir, 'checkpoints'),
      keep=config.keep,
      keep_every=config.keep_every,
      max_failed_saves=config.max_failed_saves,
  )


def restore_or_create(job, checkpoints, start):
  """Returns (state, key of the steps): the newest whole checkpoint, or new.

  start: what a new state takes from files, of setup.read_start.
  """
  k_init, k_train = setup.keys(job.config)
  shapes = job.shapes.state
  found = checkpoints.restore(shapes)
  if found is None:
    state = setup.new_state(job.built, job.config, shapes, k_init)
    return setup.started(state, start, shapes), k_train
  state, saved = found
  # An imported checkpoint does not know its data set.
  if saved['data'] not in ('', fingerprint(job.data.manifest)):
    raise errors.CheckpointError(
        f'{job.workdir} was trained on another data set than {job.config.data};'
        ' use that one, or a new --workdir'
    )
  return state, k_train


def meta(job):
  """Returns what a checkpoint remembers: enough to sample without the data."""
  manifest = job.data.manifest
  return {
      'seed': job.config.seed,
      'data': fingerprint(manifest),
      'autoencoder': manifest.autoencoder,
      'autoencoder_sha256': manifest.autoencoder_sha256,
      'bias': list(manifest.bias),
      'scale': list(manifest.scale),
      'class_names': list(manifest.class_names),
  }


def fingerprint(manifest):
  """Returns a hash of the records of a data set, wherever they lie."""
  shards = [s.sha256 for s in (*manifest.shards, *manifest.flips)]
  return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]


def device_batches(job, first):
  """Yields batches on the devices from step `first` on, read ahead."""
  config = job.config
  split = sharding.batch_sharding(job.mesh)
  batches = pipeline.batches(
      job.data,
      batch_size=config.batch_size,
      seed=config.seed,
      start_step=first,
      rows=pipeline.local_rows(split, config.batch_size),
      flips=config.flips,
      image='image' in job.shapes.batch,
      features=job.stored,
      threads=config.data_threads,
      skip_bad=config.skip_bad,
  )
  return pipeline.prefetch(
      pipeline.on_device(batches, split), config.prefetch
  )


def list_records(job, step):
  """Writes which records stood in the batch of a step; returns where."""
  config, data = job.config, job.data
  rows = range((step - 1) * config.batch_size, step * config.batch_size)
  order = functools.partial(
      pipeline.place, count=len(data), seed=config.seed, flips=config.flips
  )
  where = lambda row: data.records.where(order(row).index)
  lines = [file_names.shown(where(row)) for row in rows]
  path = epath.Path(job.workdir) / f'batch_of_step_{step}.txt'
  processes.on_first(lambda: path.write_text('\n'.join(lines) + '\n'))
  return f'The records of the batch of step {step} are listed in {path}'


def meter(job):
  """Returns the clock of the run, with the FLOPs behind MFU."""
  peak = throughput.peak_flops(job.mesh.devices.flat[0])
  return throughput.Meter(
      batch_size=job.config.batch_size,
      total=job.config.steps,
      flops_per_image=setup.train_flops(job.built, job.config),
      peak=peak and peak * job.mesh.size,
  )


def _introduce(job, first):
  """Prints what runs where, once."""
  if not processes.is_first():
    return
  config, devices = job.config, job.mesh.devices
  print(logs.overview(job.shapes.state.params))
  grid = build.token_grid(job.built.model)
  for encoder in job.built.encoders:
    if encoder.grid != grid:
      print(
          f'{encoder.name} gives {encoder.grid[0]}x{encoder.grid[1]} tokens, the'
          f' model has {grid[0]}x{grid[1]}: its tokens are resized, bilinear'
      )
  print(
      f'{config.model} {config.preset} on {devices.size} x'
      f' {devices.flat[0].device_kind}, {jax.process_count()} processes, batch'
      f' {config.batch_size}, {config.dtype}; steps {first} to {config.steps}',
      flush=True,
  )
