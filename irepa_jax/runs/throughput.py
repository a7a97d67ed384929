"""How fast a run goes, what it waits for, and where its hours went.

Rates count only steps: compilation, saving and evaluation are timed apart.
MFU = images/s * FLOPs per image / peak FLOP/s of all devices. Goodput = the
share of the wall time, over all starts of a run, in steps that counted.
"""

import contextlib
import json
import time

from irepa_jax.runs import chips

STARTED = time.monotonic()  # of the program: this module is imported early


def peak_flops(device):
  """Returns the peak bf16 FLOP/s of a jax device, or None where unknown."""
  chip = chips.find(device)
  return chip.peak if chip else None


class Meter:
  """A clock that charges every second of the loop to one category.

  Categories: init, compile, data_wait, step, and the names given to `paused`.
  """

  def __init__(
      self, *, batch_size, total, flops_per_image=0.0, peak=None, clock=time.monotonic
  ):
    """Starts the clock in `init`, at the start of the program.

    Args:
      batch_size: images of one step, on all devices.
      total: last step of the run.
      flops_per_image: of one step, backward and encoder included.
      peak: FLOP/s of all devices together; None leaves MFU out.
      clock: seconds; replaced in tests.
    """
    self.seconds = {'init': 0.0, 'compile': 0.0, 'data_wait': 0.0, 'step': 0.0}
    self._batch_size = batch_size
    self._total = total
    self._flops = flops_per_image
    self._peak = peak
    self._clock = clock
    self._category = 'init'
    self._since = STARTED if clock is time.monotonic else clock()

  def start(self, step):
    """Marks the beginning of the loop, before the first step is compiled."""
    self._switch('compile')
    self._first = self._last = self._read = step
    self._compiled = None

  def stepped(self, step):
    """Marks the end of a step; the first one has compiled."""
    self._last = step
    if self._category == 'compile':
      self._switch('step')
      self._first = self._read = step
      self._compiled = dict(self.seconds)
      self._window = dict(self.seconds)

  @contextlib.contextmanager
  def waiting(self):
    """Charges what happens inside to waiting for data."""
    with self.paused('data_wait'):
      yield

  @contextlib.contextmanager
  def paused(self, name):
    """Charges what happens inside to `name` (save, eval ...)."""
    before = self._category
    self._switch(name)
    try:
      yield
    finally:
      self._switch(before)

  def read(self, step):
    """Returns the rates since the last call; call it after a device transfer.

    img_per_s and steps_per_s; data_wait: share 0..1 of that time without a
    batch; mfu: 0..1; eta_s: seconds to the end, pauses included.
    """
    self._switch(self._category)
    steps = step - self._read
    window = {k: v - self._window.get(k, 0.0) for k, v in self.seconds.items()}
    self._read, self._window = step, dict(self.seconds)
    busy = window['step'] + window['data_wait']
    if steps < 1 or busy <= 0:
      return {}
    rates = {
        'img_per_s': steps * self._batch_size / busy,
        'steps_per_s': steps / busy,
        'data_wait': window['data_wait'] / busy,
        'eta_s': (self._total - step) * self._wall_per_step(step),
    }
    if self._peak and self._flops:
      rates['mfu'] = rates['img_per_s'] * self._flops / self._peak
    return rates

  def _wall_per_step(self, step):
    wall = sum(self.seconds.values()) - sum(self._compiled.values())
    return wall / (step - self._first)

  def _switch(self, category):
    now = self._clock()
    spent = self.seconds.get(self._category, 0.0) + now - self._since
    self.seconds[self._category] = spent
    self._category, self._since = category, now


def summary(path):
  """Returns the goodput of a run as one line, the largest part first."""
  seconds = goodput(path)
  share = seconds.pop('share')
  parts = sorted(seconds.items(), key=lambda item: -item[1])
  text = ', '.join(f'{name} {value:.0f} s' for name, value in parts if value)
  return f'goodput {share:.1%}: {text}'


def goodput(path):
  """Returns the seconds of a run by category, over all its starts.

  Besides the categories of Meter: `lost`, steps done again after a kill, and
  `share`, step time that counted over all time.
  """
  starts = {}
  for line in path.read_text().splitlines():
    with contextlib.suppress(json.JSONDecodeError):  # torn by a kill
      entry = json.loads(line)
      starts.setdefault(entry['start'], []).append(entry)
  runs = [starts[key] for key in sorted(starts)]
  total = {}
  for entries in runs:
    for name, value in entries[-1]['seconds'].items():
      total[name] = total.get(name, 0.0) + value
  total['lost'] = sum(map(_lost, runs, runs[1:]))
  total['step'] -= total['lost']
  total['share'] = total['step'] / sum(total.values())
  return total


def _lost(entries, after):
  """Returns the step seconds of one start that the next one did again."""
  kept = [e for e in entries if e['step'] <= after[0]['first']]
  before = kept[-1]['seconds']['step'] if kept else 0.0
  return entries[-1]['seconds']['step'] - before
