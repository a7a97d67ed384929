"""Checkpoints: asynchronous, atomic, sharded, and trusted only after a check.

Orbax writes and reads the arrays. It restores flipped bits without a word
and counts an empty directory as a step, so two things are added: every step
carries a digest of each leaf (saved_step.py), and restoring walks from the
newest step to the oldest until the digests agree. A damaged step is named and
passed over, and moved to `damaged/` once an older one is found whole. Nothing
is moved where a step merely belongs to another model or optimiser, where no
step is whole, or where the processes do not see the same files.

On disk: DIRECTORY/<step>/{state,meta}, DIRECTORY/damaged/<step>.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import time

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

from irepa_jax import errors
from irepa_jax.checkpoints import orbax_noise
from irepa_jax.checkpoints import saved_step
from irepa_jax.distributed import processes

OK, DAMAGED, REFUSED = range(3)  # outcomes of reading, in order of weight
UNFINISHED = '.orbax-checkpoint-tmp'
CLEANING_TRIES, CLEANING_S = 20, 0.1
MAX_STEPS = 1024  # newest steps that a restore considers
SEEN_TRIES, SEEN_S = 10, 1

orbax_noise.silence()


class Checkpoints:
  """The checkpoints of one run; every process of the job holds one."""

  def __init__(
      self, directory, *, keep=3, keep_every=0, max_failed_saves=3, timeout=1200
  ):
    """Keeps the newest `keep` steps and every multiple of `keep_every`.

    Args:
      directory: local path or gs:// address; made when something is saved.
      keep: newest steps that are kept.
      keep_every: steps divisible by this are kept for good; 0 for none.
      max_failed_saves: this many failed saves in a row end the run.
      timeout: seconds that one asynchronous save may take.
    """
    self.directory = saved_step.absolute(directory)
    self._options = _options(keep, keep_every, timeout)
    self._max_failed = max_failed_saves
    self._failed = 0
    self._manager = None
    self._saving = None  # step whose save has not been waited for
    self._saved = None  # newest step that is whole

  def save(self, step, state, meta):
    """Starts to save; returns once `state` may be donated.

    Waits for the previous save first, and reports its failure. Returns False
    for a step that is saved already or whose save could not start.

    Args:
      step: integer.
      state: any tree of arrays.
      meta: what JSON can hold (config fingerprint, seed, data position).

    Raises:
      CheckpointError: max_failed_saves saves have failed in a row.
    """
    self.wait()
    if step == self._saved:
      return False
    record = saved_step.record(step, state, meta)
    self._attempt(step, lambda: self._start(step, state, record))
    return self._saving == step

  def wait(self):
    """Waits for the save under way; a failure is logged and counted."""
    if self._saving is not None:
      step, self._saving = self._saving, None
      if self._attempt(step, self._manager.wait_until_finished):
        self._failed = 0
        self._saved = step

  def restore(self, abstract, step=None):
    """Returns (state, meta) of the newest whole step; None without any.

    Args:
      abstract: tree of jax.ShapeDtypeStruct with shardings.
      step: exactly this step; then nothing is passed over or moved.

    Raises:
      CheckpointError: the step holds other leaves, shapes or dtypes; or all
        steps are damaged; or the named step is damaged or absent.
    """
    self.wait()
    self._manager = None  # opened anew: steps may be moved away now

    def read(folder):
      return saved_step.read_state(folder, abstract)

    if step is not None:
      found = _read_one(self.directory, step, read)
    else:
      found = _newest(self.directory, read, quarantine=True)
    if found is None:
      return None
    self._saved = found.record['step']
    return found.tree, found.record['meta']

  def newest(self):
    """Returns the newest step known to be whole: saved or restored; or None."""
    return self._saved

  def close(self):
    """Waits for the save under way and ends the threads."""
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _start(self, step, state, record):
    processes.on_first(lambda: _probe(self.directory))
    plain = saved_step.for_orbax(self.directory)  # anew: a link may be cleaned
    if self._manager is None:
      processes.on_first(lambda: _drop_empty_steps(self.directory))
      self._manager = _Manager(plain, options=self._options)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(saved_step.flat(state)),
        meta=ocp.args.JsonSave(record),
    )
    self._manager.save(step, args=args, force=True)
    self._saving = step

  def _attempt(self, step, action):
    """Runs action(); whether it succeeded on every process."""
    error = None
    try:
      action()
    except Exception as raised:  # threads pass on whatever storage raised
      error = saved_step.line(raised)
    if not processes.worst(error is not None):
      return True
    self._give_up(step, error or 'on another process')
    return False

  def _give_up(self, step, error):
    """Counts a failed save; the next one opens anew and drops what is left."""
    self._saving = self._manager = None
    processes.on_first(lambda: _drop_unfinished(self.directory))
    self._failed += 1
    line = f'saving step {step} failed ({error}); last good: {self._saved}'
    if self._failed >= self._max_failed:
      raise errors.CheckpointError(f'{line}; {self._failed} failures in a row')
    logging.warning('%s; training goes on', line)


def steps(directory):
  """Returns the steps that hold files, oldest first, as process 0 sees them."""
  filled = []
  if processes.is_first():
    found = sorted(_numbered(directory))[-MAX_STEPS:]
    filled = [s for s in found if _has_files(epath.Path(directory) / str(s))]
  return processes.from_first(filled, MAX_STEPS)


def restore_item(directory, name, *, step=None, shard=None):
  """Reads one part of a state alone, such as 'ema/0', and verifies it.

  With several processes all of them call it.

  Args:
    directory: the checkpoints of a run, which may still be written to.
    name: path from the root of the state.
    step: exactly this step; by default the newest whole one.
    shard: tree of jax.ShapeDtypeStruct -> tree of shardings; by default the
      arrays lie on the first device of each process.

  Returns:
    (tree of nested dicts, meta); meta also holds 'step'.

  Raises:
    CheckpointError: no step, no such part, or no undamaged copy of it.
  """

  def read(folder):
    return saved_step.read_part(folder, name, shard or _on_first_device)

  if step is not None:
    found = _read_one(directory, step, read)
  else:
    found = _newest(directory, read, quarantine=False)
  if found is None:
    raise errors.CheckpointError(f'no checkpoint under {directory}')
  return found.tree, {**found.record['meta'], 'step': found.record['step']}


def state_bytes(abstract):
  """Returns the size of a state, which is about that of its checkpoint."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))


def _on_first_device(abstract):
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda _: device, abstract)


# Walking over steps ----------------------------------------------------------


def _newest(directory, read, *, quarantine):
  """Returns read(folder) of the newest step that is whole; None if no step."""
  directory = epath.Path(directory)
  candidates = steps(directory)[::-1]
  _check_seen(directory, _step_list, 'the same steps')
  damaged = []
  for step, older in itertools.zip_longest(candidates, candidates[1:]):
    try:
      found = _together(read, directory / str(step))
    except saved_step.Damaged as damage:
      then = 'no older step' if older is None else f'using {older}'
      logging.warning('step %d damaged (%s); %s', step, damage, then)
      _check_seen(directory / str(step), _file_list, 'the same files')
      damaged.append(step)
      continue
    for newer in damaged if quarantine else ():
      processes.on_first(functools.partial(_set_aside, directory, newer))
    return found
  if candidates or processes.worst(_has_files(directory / 'damaged')):
    raise errors.CheckpointError(
        f'every checkpoint under {directory} is damaged; nothing was moved.'
        ' Without that folder the run starts from step 0'
    )
  return None


def _read_one(directory, step, read):
  """Returns read(folder) of one step; CheckpointError if it is not whole."""
  present = steps(directory)
  if step not in present:
    raise errors.CheckpointError(
        f'no step {step} under {directory}; there are {present or "none"}'
    )
  try:
    return _together(read, epath.Path(directory) / str(step))
  except saved_step.Damaged as damage:
    raise errors.CheckpointError(f'step {step} damaged ({damage})') from damage


def _together(read, folder):
  """Returns read(folder), verified, if every process can read its share.

  Otherwise all processes raise the same kind of error: the worst that any met.
  """
  found = error = None
  try:
    found = read(folder)
  except (saved_step.Damaged, errors.CheckpointError) as raised:
    error = raised
  mine = {type(None): OK, saved_step.Damaged: DAMAGED}.get(type(error), REFUSED)
  told = processes.gather(f'{mine}{error or ""}')
  worst = max(text[0] for text in told)
  if int(worst) == OK:
    saved_step.verify(found)
    return found
  if int(worst) == mine:
    raise error
  kind = saved_step.Damaged if int(worst) == DAMAGED else errors.CheckpointError
  process = [text[0] for text in told].index(worst)
  raise kind(f'process {process}: {told[process][1:]}')


def _check_seen(folder, look, what):
  """Raises CheckpointError unless all processes see the same of a folder.

  look(folder) -> text. A network file system may show news a little late.
  """
  for _ in range(SEEN_TRIES):
    seen = processes.gather(look(folder))
    if len(set(seen)) == 1:
      return
    time.sleep(SEEN_S)
  other = next(i for i, text in enumerate(seen) if text != seen[0])
  raise errors.CheckpointError(
      f'{folder}: the processes do not see {what}: process {other}'
      f' {seen[other][:80] or "nothing"}, process 0 {seen[0][:80] or "nothing"}.'
      ' It has to be one folder, mounted on every host; nothing was moved'
  )


def _step_list(directory):
  found = sorted(_numbered(directory))[-MAX_STEPS:]
  return ' '.join(str(s) for s in found if _has_files(directory / str(s)))


def _file_list(folder):
  """Returns the number of files below a folder, and a digest of their sizes."""
  files = sorted((str(path), path.stat().length) for path in _files(folder))
  digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]
  return f'{len(files)} files ({digest})' if files else ''


def _files(folder):
  """Yields the files below a folder."""
  for path in folder.iterdir() if folder.is_dir() else ():
    yield from _files(path) if path.is_dir() else [path]


# The directory ---------------------------------------------------------------


class _Manager(ocp.CheckpointManager):
  """Orbax's manager without its own polling for preemption (preemption.py)."""

  def reached_preemption(self, step):
    return False


def _options(keep, keep_every, timeout):
  policies = ocp.checkpoint_managers
  kept = [policies.LatestN(keep)]
  if keep_every:
    kept.append(policies.EveryNSteps(keep_every))
  return ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept),
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(timeout_secs=timeout),
  )


def _numbered(directory):
  directory = epath.Path(directory)
  if not directory.is_dir():
    return []
  return [int(p.name) for p in directory.iterdir() if p.name.isdigit()]


def _has_files(folder):
  """Whether there is any file below a folder."""
  folder = epath.Path(folder)
  if not folder.is_dir():
    return folder.exists()
  return any(_has_files(p) for p in folder.iterdir())


def _drop_empty_steps(directory):
  """Removes step folders without any file, which orbax counts as steps."""
  for step in _numbered(directory):
    if not _has_files(directory / str(step)):
      (directory / str(step)).rmtree()


def _drop_unfinished(directory):
  """Removes what a failed save has left, so that it does not hold space.

  Writes that were under way may put files back for a moment.
  """
  for _ in range(CLEANING_TRIES):
    with contextlib.suppress(OSError):
      left = [p for p in directory.iterdir() if p.name.endswith(UNFINISHED)]
      if not left:
        return
      for path in left:
        path.rmtree()
    time.sleep(CLEANING_S)


def _probe(directory):
  """Raises OSError where nothing can be written, before all take part."""
  directory.mkdir(parents=True, exist_ok=True)
  probe = directory / '.writable'
  probe.write_text('')
  probe.unlink()


def _set_aside(directory, step):
  """Moves a damaged step to damaged/<step>, or <step>.1 and so on."""
  aside = directory / 'damaged'
  aside.mkdir(exist_ok=True)
  taken = {p.name for p in aside.iterdir()}
  names = (f'{step}{n}' for n in ('', *(f'.{i}' for i in range(1, 1000))))
  (directory / str(step)).rename(
      aside / next(n for n in names if n not in taken)
  )
