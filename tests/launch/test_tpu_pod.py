"""The pod launcher against a gcloud that plays a pod of two workers here."""

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# State of the pod: a file; each worker: a home folder of its own.
GCLOUD = r"""
#!/usr/bin/env bash
echo "$*" >>"$FAKE/calls"
kind=$3 verb=$4
state=$(cat "$FAKE/state")
for word; do
  case $word in
    --worker=*) workers=${word#*=} ;;
    --command=*) there=${word#*=} ;;
  esac
done
[[ ${workers:-} != all ]] || workers='0 1'
case $verb in
  describe)
    [[ $state != GONE ]] || { echo 'NOT_FOUND: no such thing' >&2; exit 1; }
    [[ $kind == tpu-vm || $state != READY ]] || state=ACTIVE
    echo "$state" ;;
  create)
    if [[ -e $FAKE/full ]]; then
      rm "$FAKE/full"; echo 'There is no more capacity' >&2; exit 1
    elif [[ -e $FAKE/forbidden ]]; then
      echo 'PERMISSION_DENIED' >&2; exit 1
    fi
    rm -rf "$FAKE"/worker?; mkdir "$FAKE"/worker{0,1}
    echo READY >"$FAKE/state" ;;
  delete) echo GONE >"$FAKE/state" ;;
  scp)
    [[ $state == READY ]] || exit 1
    for i in $workers; do cp "$5" "$FAKE/worker$i/"; done ;;
  ssh)
    [[ $state == READY ]] || exit 1
    code=0
    for i in $workers; do
      (cd "$FAKE/worker$i" && HOME=$PWD WORKER=$i bash -c "$there") || code=$?
    done
    exit $code ;;
esac
"""
# uv makes the environment of a worker: this interpreter under another name.
UV = r"""
#!/usr/bin/env bash
echo installed >>"$FAKE/installs"
[[ $1 == venv ]] || exit 0
mkdir -p "${!#}/bin"
ln -sf "$REAL_PYTHON" "${!#}/bin/python"
"""
JOB = """
  import os, pathlib, signal, sys, time
  fake, worker = pathlib.Path(os.environ['FAKE']), os.environ['WORKER']
  assert sys.argv[1:] == ['--x=a b', "it's $HOME"] and os.environ['TOKEN'] == 'a b'
  with open(fake / f'attempts{worker}', 'a') as f:
    f.write('x')
  attempt = (fake / f'attempts{worker}').stat().st_size - 1
  what = (fake / 'plan').read_text().split()[attempt]
  if what == 'preempted':
    (fake / 'state').write_text('PREEMPTED')
    time.sleep(1)
  elif what == 'wait':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print('waiting', flush=True)
    time.sleep(600)
  elif what == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
  sys.exit(int(what) if what.isdigit() else 1)
"""


@pytest.fixture
def pod(tmp_path):
  """A checkout of the launchers, the fake commands, and no pod."""
  repo, fake, tools = (tmp_path / n for n in ('repo', 'fake', 'bin'))
  for folder in (fake, tools):
    folder.mkdir()
  shutil.copytree(ROOT / 'launch', repo / 'launch')
  (repo / 'job.py').write_text(textwrap.dedent(JOB))
  (repo / '.gitignore').write_text('ignored\n')
  (repo / 'ignored').write_text('large')
  (repo / 'setup.py').touch()
  subprocess.run(['git', 'init', '-q', repo], check=True)
  subprocess.run(['git', '-C', repo, 'add', '.'], check=True)
  sleep = '#!/bin/sh\nexec /bin/sleep 0.1\n'
  for name, text in (('gcloud', GCLOUD), ('uv', UV), ('sleep', sleep)):
    (tools / name).write_text(text.lstrip())
    (tools / name).chmod(0o755)
  (fake / 'state').write_text('GONE')
  pod = Pod(repo, fake, tools)
  yield pod
  if (fake / 'state').read_text().strip() == 'READY':
    pod.on_all('irepa_jax/launch/worker.sh kill')


class Pod:
  """Runs launch/tpu_pod.sh of the checkout against the fake pod."""

  def __init__(self, repo, fake, tools):
    self.repo, self.fake = repo, fake
    self.environ = {
        'PATH': f'{tools}:{os.environ["PATH"]}',
        'HOME': str(repo),
        'FAKE': str(fake),
        'REAL_PYTHON': sys.executable,
        'LANG': 'C.UTF-8',
    }

  def on_all(self, command):
    words = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'p', '--worker=all']
    return subprocess.run(
        [*words, f'--command={command}'], env=self.environ, check=False
    )

  def plan(self, text):
    (self.fake / 'plan').write_text(text)

  def start(self, command, *options):
    return subprocess.Popen(
        [
            self.repo / 'launch/tpu_pod.sh', command, '--name=p', '--zone=z',
            '--type=v6e-8', '--poll=1', '--module=job', '--env=TOKEN=a b',
            *options, '--', '--x=a b', "it's $HOME",
        ],
        env=self.environ, cwd=self.fake, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

  def run(self, command, *options):
    """Returns the exit status and all that was printed."""
    process = self.start(command, *options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err

  def calls(self, verb):
    text = (self.fake / 'calls').read_text()
    return [line for line in text.splitlines() if f' {verb} ' in line]

  def attempts(self):
    return [len((self.fake / f'attempts{i}').read_text()) for i in (0, 1)]


def test_run_survives_no_room_preemption_stop_and_crash(pod):
  pod.plan('preempted 75 killed 0')
  (pod.fake / 'full').touch()  # the first attempt to create finds no room
  code, shown = pod.run('run', '--spot')
  assert code == 0, shown
  assert pod.attempts() == [4, 4]
  assert len(pod.calls('create')) == 3  # no room, first pod, its replacement
  assert len(pod.calls('delete')) == 1
  assert 'PREEMPTED' in shown and 'failure 1' in shown
  assert not (pod.fake / 'worker0/irepa_jax/ignored').exists()
  log = (pod.fake / 'worker1/.irepa_run/log').read_text()
  assert 'ended with status 137' in log and 'ended with status 0' in log


@pytest.mark.parametrize('plan, status', [('2', 2), ('4', 4), ('1 1', 2)])
def test_run_ends_where_another_start_would_not_help(pod, plan, status):
  pod.plan(plan)
  code, shown = pod.run('run', '--queue', '--max-crashes=1')
  assert code == status, shown
  assert pod.attempts() == [len(plan.split())] * 2
  assert len(pod.calls('create')) == 1


def test_run_ends_where_the_pod_is_not_allowed(pod):
  (pod.fake / 'forbidden').touch()
  code, shown = pod.run('run')
  assert code == 2 and 'PERMISSION_DENIED' in shown, shown


def test_a_job_goes_on_without_its_launcher_and_stops_when_asked(pod):
  pod.plan('wait')
  assert pod.run('create')[0] == 0
  assert pod.run('install')[0] == 0
  assert pod.run('start')[0] == 0
  code, shown = pod.run('status')
  assert code == 0 and 'READY' in shown
  assert shown.count(' running') == 2
  assert 'already running' in pod.run('start')[1]
  for i in (0, 1):
    log = pod.fake / f'worker{i}/.irepa_run/log'
    while 'waiting' not in log.read_text():
      time.sleep(0.05)
  again = pod.start('run')  # takes the running job up
  assert any('runs already' in line for line in again.stderr)
  assert pod.run('stop')[0] == 0
  assert again.wait(timeout=300) == 75
  again.communicate()
  assert pod.attempts() == [1, 1]
  assert pod.run('status')[1].count(' stopped') == 2


PACKED = {'job.py', 'setup.py', 'launch/common.sh'}
OTHERS = ('ignored', 'untracked', 'data/shard', 'data/deep/an image [1].png')


@pytest.mark.parametrize(
    'asked, came',
    [
        ([], []),
        (['untracked'], ['untracked']),
        (['data/deep'], ['data/deep/an image [1].png']),
        (['data', 'ignored'], ['ignored', *OTHERS[2:]]),
    ],
)
def test_only_what_git_tracks_and_what_is_asked_for_is_copied(pod, asked, came):
  for name in OTHERS:
    (pod.repo / name).parent.mkdir(parents=True, exist_ok=True)
    (pod.repo / name).write_text('x')
  (pod.repo / 'launch/local.sh').unlink()  # of the last commit only
  assert pod.run('create')[0] == 0
  code, shown = pod.run('install', *(f'--with={path}' for path in asked))
  assert code == 0, shown
  worker = pod.fake / 'worker1/irepa_jax'
  assert {n for n in OTHERS if (worker / n).exists()} == set(came)
  assert all((worker / name).exists() for name in PACKED)
  assert ' files, ' in shown and 'compressed: what git tracks' in shown
  assert '3 untracked files stay here, such as data/' in shown


@pytest.mark.parametrize('path', ['nothing', '/etc/passwd', '../elsewhere'])
def test_what_is_asked_for_lies_in_the_checkout(pod, path):
  assert pod.run('create')[0] == 0
  code, shown = pod.run('install', f'--with={path}')
  assert code == 2 and f'--with={path}: a file or folder below' in shown


def test_a_worker_that_restarted_has_lost_its_job(tmp_path):
  (tmp_path / 'pid').write_text('1 another-boot\n')
  done = subprocess.run(
      [ROOT / 'launch/worker.sh', 'status'],
      env=os.environ | {'IREPA_STATE': str(tmp_path)},
      capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout.split()[-1] == 'lost'
