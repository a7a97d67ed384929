"""Metric files, the terminal, rates and where the time went."""

import json
import math
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from irepa_jax import errors
from irepa_jax.runs import logs
from irepa_jax.runs import throughput


def write(workdir, steps, **options):
  """Logs the square of each step."""
  with logs.Logs(workdir, total=100, **options) as log:
    for step in steps:
      log.scalars(step, {'loss': jnp.float32(step**2)})


def read(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(s) for s in lines]


def events(workdir):
  """Returns the events of all TensorBoard files, oldest file first."""
  # A record: length (8 bytes), its checksum (4), data, its checksum (4).
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def test_a_resumed_run_has_each_step_once(tmp_path):
  write(tmp_path, [10, 20, 30])
  write(tmp_path, [30, 40], resume_step=20)
  wanted = [{'step': s, 'loss': s**2} for s in (10, 20, 30, 40)]
  assert read(tmp_path) == wanted


def test_a_run_that_starts_over_drops_all_lines(tmp_path):
  write(tmp_path, [10, 20])
  write(tmp_path, [10])
  assert read(tmp_path) == [{'step': 10, 'loss': 100}]


@pytest.mark.parametrize('torn', ['{"step": 20, "lo', '{"step": 2', '\0\0\0', '3'])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
  write(tmp_path, [10, 20])
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + torn)
  write(tmp_path, [30], resume_step=20)
  assert [e['step'] for e in read(tmp_path)] == [10, 20, 30]


def test_every_line_is_on_disk_at_once(tmp_path):
  log = logs.Logs(tmp_path, total=10)
  log.scalars(1, {'loss': np.float32(0.5)})
  assert read(tmp_path) == [{'step': 1, 'loss': 0.5}]
  log.close()
  assert events(tmp_path)[-1].summary.value[0].simple_value == 0.5


def test_what_is_not_finite_is_null(tmp_path):
  with logs.Logs(tmp_path, total=10) as log:
    log.scalars(1, {'a': math.nan, 'b': jnp.inf, 'c': 1})
  assert read(tmp_path) == [{'step': 1, 'a': None, 'b': None, 'c': 1.0}]


def test_tensorboard_is_purged_on_resume(tmp_path):
  write(tmp_path, [10, 20])
  first = {e.step for e in events(tmp_path) if e.summary.value}
  assert first == {10, 20}
  write(tmp_path, [20], resume_step=10)
  purge = [e.step for e in events(tmp_path) if e.session_log.status]
  assert purge == [11]


def test_images_reach_tensorboard(tmp_path):
  image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
  with logs.Logs(tmp_path, total=10) as log:
    log.images(5, 'samples', image)
  (event,) = [e for e in events(tmp_path) if e.summary.value]
  shown = event.summary.value[0]
  assert (event.step, shown.tag) == (5, 'samples')
  assert (shown.image.height, shown.image.width) == (4, 6)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(logs.processes.jax, 'process_index', lambda: 1)
  with logs.Logs(tmp_path / 'run', total=10, wandb='no such module') as log:
    log.scalars(1, {'loss': 1.0})
    log.images(1, 'samples', np.zeros((2, 2, 3), np.uint8))
    log.goodput(1, {'step': 1.0})
  assert not (tmp_path / 'run').exists()


# Weights & Biases ------------------------------------------------------------


def test_missing_wandb_is_told(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  text = 'wandb is not installed: pip install wandb'
  with pytest.raises(errors.UsageError, match=text):
    logs.Logs(tmp_path, total=10, wandb='project')


def test_a_folder_called_wandb_is_not_the_package(tmp_path, monkeypatch):
  (tmp_path / 'wandb').mkdir()
  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  for name in [n for n in sys.modules if n.split('.')[0] == 'wandb']:
    monkeypatch.delitem(sys.modules, name)
  with pytest.raises(errors.UsageError, match='wandb is not installed'):
    logs.require_wandb('project')


def test_wandb_goes_on_under_its_id(tmp_path, monkeypatch):
  """The package itself, without a network."""
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  for first in (0, 10):
    options = dict(resume_step=first, wandb='project', config={'lr': 0.5})
    with logs.Logs(tmp_path, total=100, **options) as log:
      log.scalars(first + 10, {'loss': 1.0, 'eval/fid': math.nan})
      log.images(first + 10, 'samples', np.zeros((4, 6, 3), np.uint8))
  kept = (tmp_path / 'wandb_id.txt').read_text()
  starts = list((tmp_path / 'wandb').glob('offline-run-*'))
  assert {path.name.rpartition('-')[2] for path in starts} == {kept}
  pictures = list((tmp_path / 'wandb').rglob('samples_*.png'))
  assert len(starts) == len(pictures) == 2


@pytest.mark.parametrize('project', ['a/b', 'x#y', 'p' * 200])
def test_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch, project):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  with pytest.raises(errors.UsageError, match='does not start: Invalid proj'):
    logs.Logs(tmp_path, total=10, wandb=project)


# Terminal --------------------------------------------------------------------


def test_a_line_has_all_that_matters():
  values = {
      'loss': 0.1234567, 'steps_per_s': 2.5, 'img_per_s': 640.0, 'mfu': 0.412,
      'data_wait': 0.004, 'eta_s': 273_132.0,
  }  # fmt: skip
  assert logs.line(1200, 400_000, values) == (
      'step 1200/400000  loss 0.1235  2.5 step/s  640 img/s  MFU 41.2%'
      '  data-wait 0.4%  ETA 3d 03:52:12'
  )


def test_plain_lines_without_a_terminal(tmp_path, capsys):
  write(tmp_path, [3])
  assert capsys.readouterr().out == 'step 3/100  loss 9\n'


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  with logs.Logs(tmp_path, total=100, resume_step=40) as log:
    log.scalars(50, {'loss': 0.5, 'steps_per_s': 1.0})
    log.scalars(50, {'eval/accuracy': 0.75})
  captured = capsys.readouterr()
  assert '50/100' in captured.err and 'loss 0.5' in captured.err
  assert captured.out == 'step 50/100  eval/accuracy 0.75\n'


@pytest.mark.parametrize('columns', [150, 200])
@pytest.mark.parametrize('step', [100, 1_234_500])
def test_a_bar_is_one_line_with_all_that_matters(
    tmp_path, capsys, monkeypatch, columns, step
):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  monkeypatch.setenv('COLUMNS', str(columns))
  values = {
      'loss': 0.1234567, 'diffusion': 0.81234, 'alignment': -0.51234, 'lr': 1e-4,
      'grad_norm': 0.61234, 'skipped': 0.0, 'steps_per_s': 2.512,
      'img_per_s': 643.21, 'mfu': 0.4123, 'data_wait': 0.0042,
      'eta_s': 273_132.0,
  }  # fmt: skip
  with logs.Logs(tmp_path, total=4_000_000) as log:
    log.scalars(step, values)
    log.note('step 100: checkpoint')
  captured = capsys.readouterr()
  shown = [s for s in captured.err.split('\r') if 'img/s' in s or 'loss' in s]
  assert shown and all(len(s.rstrip('\n')) <= columns for s in shown)
  wanted = f'{step}/4000000, loss 0.1235  alignment -0.5123  lr 0.0001'
  assert wanted in shown[-1]
  assert 'ETA 3d 03:52:12' in shown[-1] and 'MFU 41.2%' in shown[-1]
  assert captured.out == 'step 100: checkpoint\n'


def test_overview_counts_parameters():
  params = {
      'model': {f'blocks_{i}': {'kernel': jnp.zeros((4, 6))} for i in range(10)},
      'projector': {'bias': jnp.zeros(60, jnp.bfloat16)},
  }
  assert logs.overview(params).splitlines() == [
      'model/blocks_*/kernel  10 x float32[4,6]  240   80.0%',
      'projector/bias         1 x bfloat16[60]    60   20.0%',
      '300 parameters',
  ]


# A remote run directory --------------------------------------------------------


def test_files_of_a_remote_directory_are_copied_both_ways(tmp_path, monkeypatch):
  remote = tmp_path / 'bucket'
  write(remote, [10, 20])
  address = str(remote).replace('/tmp', '/tmp/x://..', 1)
  real = logs.epath.Path
  monkeypatch.setattr(
      logs.epath, 'Path', lambda p: real(str(p).replace('x://..', '.'))
  )
  write(address, [20, 30], resume_step=10)
  assert [e['step'] for e in read(remote)] == [10, 20, 30]
  assert len(list((remote / 'tensorboard').iterdir())) == 2


# Rates -----------------------------------------------------------------------


class Clock:
  """Seconds that pass only when a test says so."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def drive(meter, clock, steps, *, compile_s=0.0, wait=0.25, step_s=0.75):
  for step in steps:
    with meter.waiting():
      clock.now += wait
    clock.now += step_s + (compile_s if step == steps[0] else 0.0)
    meter.stepped(step)


@pytest.fixture
def meter():
  clock = Clock()
  meter = throughput.Meter(
      batch_size=64, total=1001, flops_per_image=1e9, peak=128e9, clock=clock
  )
  clock.now += 7
  meter.start(0)
  drive(meter, clock, [1], compile_s=30)
  return meter, clock


def test_rates_leave_out_compiling_and_pauses(meter):
  meter, clock = meter
  drive(meter, clock, range(2, 12))
  with meter.paused('eval'):
    clock.now += 50
  rates = meter.read(11)
  assert rates == pytest.approx({
      'img_per_s': 64.0,
      'steps_per_s': 1.0,
      'data_wait': 0.25,
      'mfu': 0.5,
      'eta_s': 990 * 6.0,  # ten steps took ten seconds and a pause of fifty
  })


def test_each_reading_begins_anew(meter):
  meter, clock = meter
  drive(meter, clock, range(2, 12))
  meter.read(11)
  drive(meter, clock, range(12, 14), wait=0.0, step_s=2.0)
  rates = meter.read(13)
  assert rates['steps_per_s'] == pytest.approx(0.5)
  assert rates['data_wait'] == 0
  assert meter.read(13) == {}


def test_every_second_has_one_category(meter):
  meter, clock = meter
  drive(meter, clock, range(2, 6))
  with pytest.raises(RuntimeError), meter.paused('save'):
    clock.now += 3
    raise RuntimeError
  meter.read(5)
  assert meter.seconds == pytest.approx({
      'init': 7, 'compile': 30.75, 'data_wait': 1.25, 'step': 3, 'save': 3,
  })  # fmt: skip
  assert sum(meter.seconds.values()) == pytest.approx(clock.now - 100)


def test_mfu_needs_a_known_peak():
  clock = Clock()
  meter = throughput.Meter(batch_size=8, total=10, flops_per_image=1, clock=clock)
  meter.start(0)
  drive(meter, clock, range(1, 4))
  assert 'mfu' not in meter.read(3)


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('TPU v4', 275e12), ('TPU v5 lite', 197e12), ('TPU v5', 459e12),
        ('TPU v5p', 459e12), ('TPU v6 lite', 918e12), ('NVIDIA H200', 989.4e12),
        ('NVIDIA H100 80GB HBM3', 989.4e12), ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA A100-SXM4-80GB', 312e12), ('cpu', None),
        ('TPU7x', 1153.5e12), ('NVIDIA B200', 2250e12),
        ('NVIDIA GB200', 2500e12), ('NVIDIA GB300', 2500e12),
    ],
)  # fmt: skip
def test_peaks_by_device_kind(kind, peak):
  device = types.SimpleNamespace(device_kind=kind)
  assert throughput.peak_flops(device) == peak


# Goodput ---------------------------------------------------------------------


def start_of(workdir, number, first, entries):
  """Appends the lines of one start: {step: (init, step seconds)}."""
  with (workdir / 'goodput.jsonl').open('a') as file:
    for step, (init, busy) in entries.items():
      seconds = {'init': init, 'step': busy}
      entry = {'start': number, 'first': first, 'step': step, 'seconds': seconds}
      file.write(json.dumps(entry) + '\n')


def test_steps_done_again_are_lost(tmp_path):
  start_of(tmp_path, 1.0, 0, {100: (5, 10), 200: (5, 20), 300: (5, 30)})
  start_of(tmp_path, 2.0, 200, {300: (5, 10)})
  (tmp_path / 'goodput.jsonl').open('a').write('{"start": 2.0, "st')
  total = throughput.goodput(tmp_path / 'goodput.jsonl')
  assert total == {'init': 10, 'step': 30, 'lost': 10, 'share': 0.6}
  assert throughput.summary(tmp_path / 'goodput.jsonl') == (
      'goodput 60.0%: step 30 s, init 10 s, lost 10 s'
  )


def test_logs_keep_the_lines_of_all_starts(tmp_path, capsys):
  for first in (0, 20):
    with logs.Logs(tmp_path, total=100, resume_step=first) as log:
      log.goodput(first + 30, {'init': 1.0, 'step': 3.0})
  total = throughput.goodput(tmp_path / 'goodput.jsonl')
  assert total == {'init': 2, 'step': 3, 'lost': 3, 'share': 3 / 8}
  assert 'goodput 37.5%' in capsys.readouterr().out


def test_event_files_are_written_without_importing_torch(tmp_path):
  code = (
      'import sys; from irepa_jax.runs import logs; logs.Logs(sys.argv[1], total=1)'
      '.close(); assert "torch" not in sys.modules, "imported"'
  )
  subprocess.run([sys.executable, '-c', code, tmp_path], check=True)
  assert list((tmp_path / 'tensorboard').iterdir())
