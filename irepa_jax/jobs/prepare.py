"""Writes a data set: sharded records of latents, images, labels, features.

Continues after a kill; several processes on one shared folder divide the
shards.
"""

from concurrent import futures
import dataclasses
import functools
import os
import pathlib
import shutil
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import tqdm

from irepa_jax import encoders as zoo
from irepa_jax import errors
from irepa_jax import models
from irepa_jax.data import encode
from irepa_jax.data import manifest as manifests
from irepa_jax.data import shards
from irepa_jax.data import sources
from irepa_jax.data import write
from irepa_jax.distributed import signals
from irepa_jax.jobs import prepare_options
from irepa_jax.weights import files

SMALL_SHARE = 0.01  # of images smaller than the crop, above which it is said
KEPT = 'finished shards are kept: the same command goes on with the others'
UNITS = ((86400, 'days'), (3600, 'h'), (60, 'min'), (1, 's'))
SIZES = ((1e12, 'TB'), (1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB'))


class Network(NamedTuple):
  """An autoencoder or encoder, and the weights that it will load."""

  model: Any
  weights: str | pathlib.Path | None
  sha256: str  # of the file; empty where it has none


def say_line(line):
  """Prints a line at once, also into a pipe."""
  print(line, flush=True)


def prepare(
    source,
    out,
    *,
    process_index=None,
    process_count=None,
    say=say_line,
    **options,
):
  """Writes a data set and returns its manifest; continues where it stopped.

  Args:
    source: a name such as folder:/path, or a positioned source.
    out: folder, the same for every process.
    process_index: of `process_count` that divide the work; None asks jax.
    say: receives each line for the user.
    **options: fields of prepare_options.Options.
  """
  options = prepare_options.checked(**options)
  if process_count is None:
    process_index, process_count = jax.process_index(), jax.process_count()
  say = say if process_index == 0 else _silent
  source = sources.create(source) if isinstance(source, str) else source
  manifests.check_local(out)
  codec, encoders = _networks(source, options)
  _check(source, options, codec)
  left_out = getattr(source, 'left_out', '')  # other sources need not know it
  if left_out:
    say(f'ignored: {left_out}')
  job = _job(source, out, codec, encoders, options)
  length = job.settings['images']
  spans = shards.plan(length, options.shard_size)
  shards.check_writable(out)
  shards.check_folder(out, job.settings)
  with futures.ThreadPoolExecutor(options.threads or os.cpu_count()) as pool:
    job = job._replace(pool=pool)
    mine = spans[process_index::process_count]
    load = lambda: _encode(source, codec, encoders, options)
    _write(job, mine, load, options.max_skipped, process_count, say)
  parts = shards.wait(out, spans, job.settings, say)
  shards.check_skipped(out, parts, length, options.max_skipped)
  manifest = _manifest(job, parts, codec, encoders)
  if process_index == 0:
    manifests.write(out, manifest)
    shards.clean(out)
  shards.wait_for_manifest(out, manifest)
  _report(manifest, parts, out, left_out, say)
  return manifest


def _manifest(job, parts, codec, encoders):
  model = codec and codec.model
  return shards.assemble(
      job,
      parts,
      codec=codec and (*_identity(codec), model.bias, model.scale),
      encoders=[_identity(network) for network in encoders],
  )


def _networks(source, options):
  """Returns (codec or None, encoders) with their weights found and hashed."""
  codec = None
  if options.autoencoder not in prepare_options.NO_LATENTS:
    model = _with_statistics(
        models.autoencoder(options.autoencoder), options.statistics
    )
    absent = model.source is None or (
        source.has_moments and not options.weights
    )
    codec = _network(model, absent, options.weights, model.fetch)
  names, given = options.encoder, options.encoder_weights
  if given and len(given) != len(names):
    raise errors.UsageError(
        f'encoder_weights names {len(given)} files for {len(names)} encoders'
    )
  paths = given or [''] * len(names)
  return codec, [
      _encoder(n, p, options) for n, p in zip(names, paths, strict=True)
  ]


def _with_statistics(model, path):
  if not path:
    return model
  read = models.autoencoders.read_statistics
  bias, scale = read(path, model.channels)
  return dataclasses.replace(model, bias=bias, scale=scale)


def _encoder(name, path, options):
  dtype = jnp.dtype(options.encoder_dtype)
  model = zoo.create(name, resolution=options.image_size, dtype=dtype)
  fetch = lambda path: files.fetch(path or model.spec.source, model.spec.file)
  return _network(model, not model.spec.layouts, path, fetch)


def _network(model, absent, path, fetch):
  if absent:
    return Network(model, path or None, '')
  local = fetch(path or None)
  return Network(model, local, files.sha256(local))


def _identity(network):
  return network.model.name, network.sha256


def _check(source, options, codec):
  """Raises UsageError or DataError where the options cannot work."""
  if codec and options.image_size % codec.model.factor:
    raise errors.UsageError(
        f'image_size={options.image_size} is no multiple of'
        f' {codec.model.factor}, which {options.autoencoder} needs'
    )
  images_used = options.encoder or options.image_format != 'none'
  if images_used and not source.has_images:
    raise errors.UsageError(
        'the source has no images: use --image_format=none and no --encoder'
    )
  if options.flip and source.has_moments:
    raise errors.UsageError(
        'the source brings latents, but none of mirror images: prepare from'
        ' images to have --flip'
    )
  if options.flip and not codec and not options.encoder:
    raise errors.UsageError(
        '--flip stores mirrored latents and features, and there are none;'
        ' images alone are mirrored in training'
    )
  if codec and source.has_moments:
    _check_moments(source[0].moments.shape, codec, options.image_size)
  names = source.class_names
  if names and options.num_classes not in (0, len(names)):
    raise errors.DataError(
        f'the source has {len(names)} classes ({names[0]} to {names[-1]}), not'
        f' num_classes={options.num_classes}'
    )


def _check_moments(shape, codec, image_size):
  """Raises DataError where latents of a source are not of the autoencoder."""
  side = image_size // codec.model.factor
  expected = (side, side, 2 * codec.model.channels)
  if shape != expected:
    raise errors.DataError(
        f'the source brings moments of shape {shape}; {codec.model.name} at'
        f' {image_size} pixels has {expected}'
    )


def _job(source, out, codec, encoders, options):
  """Gathers what writing needs, apart from the devices and the threads."""
  settings = {
      'source': source.fingerprint,
      'images': min(options.max_images or len(source), len(source)),
      'image_size': options.image_size,
      'image_format': options.image_format,
      'autoencoder': list(_identity(codec)) if codec else [],
      'bias': list(codec.model.bias or ()) if codec else [],
      'scale': list(codec.model.scale or ()) if codec else [],
      'encoder': [list(_identity(network)) for network in encoders],
      'encoder_dtype': options.encoder_dtype if encoders else '',
      'flip': options.flip,
      'shard_size': options.shard_size,
  }
  return write.Job(
      source=source,
      out=pathlib.Path(out),
      settings=settings,
      image_size=options.image_size,
      image_format=options.image_format,
      num_classes=len(source.class_names) or options.num_classes,
      keep_moments=codec is not None,
      grey=codec is not None and codec.model.grey,
      skip=options.on_error == 'skip',
  )


def _encode(source, codec, encoders, options):
  """Loads the weights onto the devices."""
  load = lambda network: (network.model, network.model.load(network.weights))
  return encode.make(
      load(codec) if codec and not source.has_moments else None,
      [load(network) for network in encoders],
      flip=options.flip,
      batch_size=options.batch_size,
  )


def _write(job, mine, load, max_skipped, process_count, say):
  """Writes those shards of this process that are not finished."""
  job.out.mkdir(parents=True, exist_ok=True)
  found = list(job.pool.map(functools.partial(_finished, job), mine))
  todo = [span for span, part in zip(mine, found, strict=True) if not part]
  parts = [part for part in found if part]
  if not todo:
    return
  job = job._replace(encode=load())
  _announce(write.measure(job, todo[0]), job, todo, process_count, say)
  total, left = _images(mine), _images(todo)
  bar = tqdm.tqdm(
      total=total, initial=total - left, unit='img', disable=say is _silent
  )
  with bar, signals.kept(KEPT):
    for span in todo:
      parts.append(write.shard(job, span, bar.update))
      if parts[-1].skipped:
        length = job.settings['images']
        shards.check_skipped(job.out, parts, length, max_skipped)


def _finished(job, span):
  """Returns the Part of a shard that need not be written again, or None."""
  part = shards.finished(job.out, span, job.settings)
  if part and any(write.readable(job, i) for i, _, _ in part.skipped):
    return None
  return part


def _announce(pace, job, todo, process_count, say):
  """Says how large and how long this will be; DataError if it cannot fit."""
  left = _images(todo)
  record = pace.size / max(pace.images, 1)
  size = record * left * process_count
  free = shutil.disk_usage(job.out).free
  here = f' here, by one of {process_count} processes' * (process_count > 1)
  say(
      f'{left:,} of {job.settings["images"]:,} images to write in'
      f' {len(todo)} shards{here}: {_amount(record, SIZES)} a record, about'
      f' {_amount(size, SIZES)} in all ({_amount(free, SIZES)} free), about'
      f' {_amount(left * pace.image_s, UNITS)}'
  )
  say(
      f'first {pace.images} images: read {pace.read_s:.3g} s, encode'
      f' {pace.encode_s:.3g} s, pack {pace.pack_s:.3g} s, once to compile'
      f' {pace.compile_s:.3g} s'
  )
  if size > free:
    raise errors.DataError(
        f'{job.out} has {_amount(free, SIZES)} free and about'
        f' {_amount(size, SIZES)} are needed'
    )


def _report(manifest, parts, out, left_out, say):
  shard_files = (*manifest.shards, *manifest.flips)
  size = sum(shard.size for shard in shard_files)
  say(
      f'{out}: {manifest.count:,} records of {manifest.num_classes} classes in'
      f' {len(shard_files)} shards, {_amount(size, SIZES)};'
      f' {manifest.skipped} images skipped'
      + (f'; ignored in the source: {left_out}' if left_out else '')
  )
  small = sum(part.enlarged for part in parts)
  if manifest.coloured:
    say(
        f'warning: {manifest.coloured:,} images have colours, of which'
        f' {manifest.autoencoder} keeps the brightness alone: samples will be'
        ' grey, and training asks for --config.drop_colours=true'
    )
  if small > SMALL_SHARE * manifest.count:
    say(
        f'warning: {small:,} images ({small / manifest.count:.1%}) are smaller'
        f' than {manifest.image_size} pixels and were enlarged'
    )


def _silent(line):
  """What a process other than the first says."""
  del line


def _images(spans):
  return sum(span.stop - span.start for span in spans)


def _amount(value, units):
  """Returns bytes or seconds in the largest unit that gives 1 or more."""
  factor, name = next((u for u in units if value >= u[0]), units[-1])
  return f'{value / factor:.3g} {name}'
