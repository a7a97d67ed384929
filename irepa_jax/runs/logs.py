"""What a run tells: metrics.jsonl, TensorBoard, Weights & Biases, a terminal.

Only process 0 writes. Each line of metrics.jsonl is on disk before the next
step, so a crash loses nothing; on resume, lines after the restored step are
dropped, so that no step stands there twice. TensorBoard gets the same numbers
through tensorboardX, without TensorFlow.
"""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import re
import secrets
import sys
import tempfile
import time

from absl import logging
from etils import epath
import jax
import numpy as np
import tqdm

from irepa_jax import errors
from irepa_jax.distributed import processes
from irepa_jax.runs import events
from irepa_jax.runs import throughput

UPLOAD_S = 60  # seconds between uploads to a remote run directory
LINE_FILES = ('metrics.jsonl', 'goodput.jsonl')


class Logs:
  """The writers of one start of a run; use as a context."""

  def __init__(self, workdir, *, total, resume_step=0, wandb='', config=None):
    """Opens the files, repaired and cut back to `resume_step`.

    Args:
      workdir: the run directory, local or gs://.
      total: last step of the run.
      resume_step: the step that was restored; 0 for a new run.
      wandb: project name; empty for none.
      config: dict shown by Weights & Biases.

    Raises:
      UsageError: wandb is asked for but not installed.
    """
    self._writers = []
    if not processes.is_first():
      return
    self._folder = _Folder(workdir)
    metrics = self._folder.local / 'metrics.jsonl'
    _cut_back(metrics, resume_step)
    if wandb:  # first: it may refuse
      self._writers.append(_Wandb(self._folder.local, wandb, config))
    self._writers += [
        _Lines(metrics),
        events.Events(self._folder.local / 'tensorboard', resume_step),
        _terminal(total, resume_step),
    ]
    self._goodput = self._folder.local / 'goodput.jsonl'
    _cut_back(self._goodput, math.inf)
    self._start = {'start': time.time(), 'first': resume_step}

  def scalars(self, step, values):
    """Writes a flat dict of numbers that belong to one step."""
    numbers = {name: float(value) for name, value in values.items()}
    for writer in self._writers:
      writer.scalars(step, numbers)
    self._upload()

  def note(self, text):
    """Tells something on the terminal, above a bar if there is one."""
    for writer in self._writers:
      if isinstance(writer, _Printed):
        writer.note(text)

  def images(self, step, name, image):
    """Shows an image, uint8 [h w 3], in TensorBoard and Weights & Biases."""
    image = np.asarray(image)
    for writer in self._writers:
      writer.image(step, name, image)

  def goodput(self, step, seconds):
    """Appends the seconds by category of this start (Meter.seconds)."""
    if self._writers:
      rounded = {k: round(v, 3) for k, v in seconds.items()}
      entry = {**self._start, 'step': step, 'seconds': rounded}
      _append(self._goodput, entry)

  def close(self):
    """Flushes and ends all writers; prints where the time went."""
    for writer in self._writers:
      writer.close()
    if self._writers and self._goodput.exists():
      print(throughput.summary(self._goodput), flush=True)
    self._upload(now=True)
    self._writers = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _upload(self, now=False):
    if self._writers:
      self._folder.upload(now)


def require_wandb(project):
  """Raises UsageError where a project is named and wandb is not installed."""
  found = importlib.util.find_spec('wandb') if project else None
  # A folder `wandb`, as its own runs leave behind, can be imported too.
  if project and (found is None or found.origin is None):
    raise errors.UsageError(
        'wandb is not installed: pip install wandb, or leave'
        f' --config.wandb={project} away'
    )


def overview(params):
  """Returns a table of parameters, one line per kind: numbered parts as one.

  blocks_*/attn/qkv/kernel  28 x float32[1152,3456]  111,476,736  16.5 %
  """
  kinds = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    shape = f'{x.dtype}[{",".join(map(str, x.shape))}]'
    kinds.setdefault((re.sub(r'_\d+', '_*', name), shape), []).append(x.size)
  total = sum(map(sum, kinds.values()))
  rows = [
      (name, f'{len(sizes)} x {shape}', f'{sum(sizes):,}', sum(sizes) / total)
      for (name, shape), sizes in kinds.items()
  ]
  wide = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [
      f'{a:{wide[0]}}  {b:{wide[1]}}  {c:>{wide[2]}}  {share:6.1%}'
      for a, b, c, share in rows
  ]
  return '\n'.join([*lines, f'{total:,} parameters'])


def line(step, total, values):
  """Returns 'step 1200/400000  loss 0.1234  812 img/s  ...  ETA 3d 04:12'."""
  known = {
      'steps_per_s': '{:.3g} step/s',
      'img_per_s': '{:.4g} img/s',
      'mfu': 'MFU {:.1%}',
      'data_wait': 'data-wait {:.1%}',
  }
  parts = [f'step {step}/{total}']
  parts += [f'{k} {v:.4g}' for k, v in values.items() if k not in (*known, 'eta_s')]
  parts += [text.format(values[k]) for k, text in known.items() if k in values]
  if 'eta_s' in values:
    parts.append(f'ETA {duration(values["eta_s"])}')
  return '  '.join(parts)


def duration(seconds):
  """Returns '3d 04:12:00' or '04:12:00'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  return f'{f"{days}d " if days else ""}{hours:02}:{minutes:02}:{seconds:02}'


# Writers: scalars(step, numbers), image(step, name, image), close() ------------


class _Lines:
  """metrics.jsonl: one object per line; what is not finite becomes null."""

  def __init__(self, path):
    self._path = path

  def scalars(self, step, numbers):
    finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    _append(self._path, {'step': step, **finite})

  def image(self, step, name, image):
    pass

  def close(self):
    pass


class _Wandb:
  """Weights & Biases; a resumed run goes on under the id kept beside it."""

  def __init__(self, folder, project, config):
    require_wandb(project)
    import wandb

    kept = folder / 'wandb_id.txt'
    if not kept.exists():
      kept.write_text(secrets.token_hex(4))
    self._wandb = wandb
    try:
      self._run = wandb.init(
          project=project,
          id=kept.read_text().strip(),
          resume='allow',
          dir=str(folder),
          config=config,
      )
    except (wandb.Error, OSError, ValueError) as error:
      raise errors.UsageError(
          f'Weights & Biases does not start: {str(error).strip()}'
          ' (`wandb login`, or WANDB_MODE=offline keeps its files in the run'
          f' directory; or leave --config.wandb={project} away)'
      ) from error

  def scalars(self, step, numbers):
    self._run.log(numbers, step=step)

  def image(self, step, name, image):
    self._run.log({name: self._wandb.Image(image)}, step=step)

  def close(self):
    self._run.finish()


class _Printed:
  """One line per call, for log files."""

  def __init__(self, total):
    self._total = total

  def scalars(self, step, numbers):
    print(line(step, self._total, numbers), flush=True)

  def image(self, step, name, image):
    pass

  def note(self, text):
    print(text, flush=True)

  def close(self):
    pass


# What the bar has no room for; metrics.jsonl and TensorBoard have it.
UNSHOWN = ('diffusion', 'grad_norm', 'skipped')


class _Bar(_Printed):
  """A bar with the newest training metrics; other metrics stay as lines."""

  def __init__(self, total, resume_step):
    super().__init__(total)
    self._bar = tqdm.tqdm(
        total=total,
        initial=resume_step,
        dynamic_ncols=True,
        bar_format='{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}',
    )

  def scalars(self, step, numbers):
    if 'steps_per_s' not in numbers:
      self._bar.write(line(step, self._total, numbers))
      return
    self._bar.update(step - self._bar.n)
    shown = {k: v for k, v in numbers.items() if k not in UNSHOWN}
    text = line(step, self._total, shown).split('  ', 1)[1]
    self._bar.set_postfix_str(text)

  def note(self, text):
    self._bar.write(text)

  def close(self):
    self._bar.close()


def _terminal(total, resume_step):
  if sys.stderr.isatty():
    return _Bar(total, resume_step)
  return _Printed(total)


# Files -----------------------------------------------------------------------


class _Folder:
  """Where files are appended: the run directory, or a copy if it is remote."""

  def __init__(self, workdir):
    self._remote = epath.Path(workdir) if '://' in str(workdir) else None
    self._uploaded = time.monotonic()
    self.local = pathlib.Path(workdir)
    if self._remote:
      self.local = pathlib.Path(tempfile.mkdtemp(prefix='irepa_jax_logs'))
      _copy(self._remote, self.local, [*LINE_FILES, 'wandb_id.txt'])
    self.local.mkdir(parents=True, exist_ok=True)

  def upload(self, now):
    """Copies the files to the remote directory, at most once a minute."""
    late = time.monotonic() - self._uploaded > UPLOAD_S
    if self._remote and (now or late):
      self._uploaded = time.monotonic()
      files = [p for p in self.local.rglob('*') if p.is_file()]
      _copy(self.local, self._remote, [p.relative_to(self.local) for p in files])


def _copy(source, target, names):
  """Copies the files that exist from one folder to another."""
  for name in names:
    if (epath.Path(source) / name).exists():
      (epath.Path(target) / name).parent.mkdir(parents=True, exist_ok=True)
      (epath.Path(source) / name).copy(epath.Path(target) / name, overwrite=True)


_WAITING = {}  # path -> lines that a full disk has not taken yet


def _append(path, entry):
  """Adds a line; what cannot be written now is kept for the next time."""
  lines = _WAITING.pop(path, '') + json.dumps(entry) + '\n'
  size = path.stat().st_size if path.exists() else 0
  try:
    with path.open('a') as file:
      file.write(lines)
  except OSError as error:
    _WAITING[path] = lines
    logging.warning('%s cannot be written (%s); the run goes on', path, error)
    with contextlib.suppress(OSError):
      os.truncate(path, size)


def _cut_back(path, last):
  """Drops lines after step `last`, and a last line that a kill has torn."""
  if not path.exists():
    return
  kept = [s for s in path.read_text().splitlines() if _step(s) <= last]
  new = path.with_suffix('.new')
  new.write_text(''.join(s + '\n' for s in kept))
  new.replace(path)


def _step(text):
  """Returns the step of a line; NaN, which is never <=, if it is not whole."""
  try:
    return json.loads(text)['step']
  except (ValueError, KeyError, TypeError):
    return math.nan
