"""Who takes part in a job, whether they come, and whether they agree."""

import contextlib
import http.server
import inspect
import socket
import threading
import time

import jax
from jax._src.clusters import cloud_tpu_cluster
from jax._src.clusters import ompi_cluster
from jax._src.clusters import slurm_cluster
import multihost
import pytest

from irepa_jax import errors
from irepa_jax.distributed import cluster
from irepa_jax.distributed import processes
from irepa_jax.distributed import rendezvous
from irepa_jax.distributed import start

SLURM = {
    'SLURM_JOB_ID': '4097',
    'SLURM_NTASKS': '8',
    'SLURM_STEP_NUM_TASKS': '8',
    'SLURM_STEP_NODELIST': 'gpu[003-005,9]-ib,other',
    'SLURM_STEP_TASKS_PER_NODE': '2(x3),2',
    'SLURM_PROCID': '3',
    'SLURM_NODEID': '1',
    'SLURM_LOCALID': '1',
}
MPI = {
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': '2',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
    'OMPI_COMM_WORLD_LOCAL_RANK': '0',
    'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.96.0.1,10.148.0.1:34911',
}
GKE = {
    'TPU_WORKER_HOSTNAMES': 'w-0.svc,w-1.svc',
    'TPU_WORKER_ID': '1',
    'TPU_SKIP_MDS_QUERY': 'true',
}
SLICES = GKE | {
    'MEGASCALE_NUM_SLICES': '3',
    'MEGASCALE_SLICE_ID': '2',
    'MEGASCALE_COORDINATOR_ADDRESS': 'slice-0-0.svc:8080',
}
FLAGS = {
    'IREPA_COORDINATOR': 'a:1',
    'IREPA_NUM_PROCESSES': '3',
    'IREPA_PROCESS_ID': '2',
}


@pytest.fixture(autouse=True)
def libtpu(monkeypatch):
  """The machine of the tests looks like one with TPU support installed."""
  monkeypatch.setattr(cluster, '_has_libtpu', lambda: True)


@pytest.fixture
def vm():
  """Serves the metadata of a Google Cloud VM; gives its environment."""
  attributes = {}

  class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self):
      key = self.path.rsplit('/', 1)[1]
      known = key in attributes and self.headers['Metadata-Flavor'] == 'Google'
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(attributes.get(key, '').encode())

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.02,)).start()
    yield attributes, {'GCE_METADATA_IP': f'127.0.0.1:{server.server_port}'}
    server.shutdown()


@pytest.mark.parametrize(
    'environ, expected',
    [
        (SLURM, ('SLURM', 'gpu003-ib:61441', 8, 3, (1,))),
        (SLURM | {'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, ((2, 3),)),
        (SLURM | {'CUDA_VISIBLE_DEVICES': '0'}, (None,)),
        (
            SLURM | {'CUDA_VISIBLE_DEVICES': '0,1', 'SLURM_GPUS_PER_TASK': '2'},
            (None,),
        ),
        (SLURM | {'JAX_LOCAL_DEVICE_IDS': '0'}, (None,)),
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x8)'}, (None,)),
        (
            SLURM | {'SLURM_STEP_NODELIST': 'n1', 'JAX_COORDINATOR_PORT': '7'},
            ('n1:7', 8, 3, (1,)),
        ),
        (
            SLURM | {'SLURM_STEP_NODELIST': 'r[1-2]n[04-05]'},
            ('r1n04:61441', 8, 3, (1,)),
        ),
        (MPI, ('Open MPI', '10.96.0.1:61441', 4, 2, (0,))),
        (GKE, ('the TPU slice', 'w-0.svc:8482', 2, 1, None)),
        (SLICES, ('slice-0-0.svc:8482', 6, 5, None)),
        (
            {'TPU_PROCESS_ADDRESSES': 'a:1,b:1', 'TPU_WORKER_ID': '0'},
            ('a:8482', 2, 0, None),
        ),
        (FLAGS, ('a:1', 3, 2, None)),
        (SLURM | {'IREPA_COORDINATOR': 'b:2'}, ('b:2', 8, 3, (1,))),
    ],
)
def test_several_processes_are_found(environ, expected):
  assert cluster.find(environ=environ)[-len(expected) :] == expected


@pytest.mark.parametrize(
    'environ',
    [
        {},
        SLURM | {'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1'},
        {'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'},  # sbatch without srun
        MPI | {'OMPI_COMM_WORLD_SIZE': '1'},
        {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'},
        GKE | {'JAX_PLATFORMS': 'cpu'},
        GKE | {'TPU_PROCESS_BOUNDS': '1,1,1'},
        GKE | {'IREPA_NUM_PROCESSES': '1'},
    ],
)
def test_one_process_is_no_job_of_several(environ):
  assert cluster.find(environ={'TPU_SKIP_MDS_QUERY': '1'} | environ) is None


def test_a_pod_without_libtpu_is_not_a_tpu(monkeypatch):
  monkeypatch.setattr(cluster, '_has_libtpu', lambda: False)
  assert cluster.find(environ=GKE) is None


def test_tpu_vm_of_one_host_is_one_process(vm):
  attributes, environ = vm
  attributes['worker-network-endpoints'] = '10.0.0.2'
  attributes['agent-worker-number'] = '0'
  attributes['tpu-env'] = "ACCELERATOR_TYPE: 'v5litepod-8'\nWORKER_ID: '0'\n"
  assert cluster.find(environ=environ) is None


@pytest.mark.parametrize(
    'ends', ['10.0.0.2,10.0.0.3', 'n:0:10.0.0.2,n:1:10.0.0.3']
)
def test_tpu_pod_is_read_from_the_metadata(vm, ends):
  attributes, environ = vm
  attributes['worker-network-endpoints'] = ends
  attributes['agent-worker-number'] = '1'
  found = cluster.find(environ=environ)
  assert found[1:4] == ('10.0.0.2:8482', 2, 1)


def test_tpu_slices_are_read_from_the_metadata(vm):
  attributes, environ = vm
  attributes['worker-network-endpoints'] = '10.0.1.2,10.0.1.3'
  attributes['agent-worker-number'] = '1'
  attributes['tpu-env'] = (
      "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
      "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.2:8080'\n"
  )
  assert cluster.find(environ=environ)[1:4] == ('10.0.0.2:8482', 4, 3)


def test_a_vm_without_tpus_is_one_process(vm):
  assert cluster.find(environ=vm[1]) is None


def test_arguments_come_before_the_environment():
  found = cluster.find('c:3', 2, 0, environ=FLAGS)
  assert found[1:4] == ('c:3', 2, 0)


@pytest.mark.parametrize(
    'environ, text',
    [
        ({'IREPA_NUM_PROCESSES': '2'}, 'IREPA_COORDINATOR'),
        (FLAGS | {'IREPA_PROCESS_ID': '3'}, 'ids go from 0 to 2'),
        (FLAGS | {'IREPA_PROCESS_ID': '-1'}, 'must be a number'),
        (FLAGS | {'IREPA_COORDINATOR': 'host'}, 'must be host:port'),
        (FLAGS | {'IREPA_NUM_PROCESSES': '0'}, 'of 0 processes'),
        (MPI | {'OMPI_MCA_orte_hnp_uri': ''}, 'Open MPI'),
    ],
)
def test_incomplete_settings_are_named(environ, text):
  with pytest.raises(errors.UsageError, match=text):
    cluster.find(environ={'TPU_SKIP_MDS_QUERY': '1'} | environ)


@pytest.mark.parametrize(
    'environ, text',
    [
        (SLURM | {'SLURM_PROCID': 'x'}, "SLURM_PROCID is 'x'"),
        (SLURM | {'SLURM_NTASKS': 'two', 'SLURM_STEP_NUM_TASKS': ''}, 'NTASKS'),
        ({k: v for k, v in SLURM.items() if k != 'SLURM_JOB_ID'}, 'JOB_ID is not'),
        (SLURM | {'SLURM_NODEID': '9'}, 'SLURM_NODEID is 9'),
        ({k: v for k, v in MPI.items() if k[-5:] != '_RANK'}, 'RANK is not set'),
        (MPI | {'OMPI_COMM_WORLD_SIZE': 'four'}, "SIZE is 'four'"),
        (FLAGS | {'IREPA_COORDINATOR': 'a:99999'}, 'from 1 to 65535'),
        (FLAGS | {'IREPA_COORDINATOR': 'a:0'}, 'from 1 to 65535'),
        (SLICES | {'MEGASCALE_NUM_SLICES': 'x'}, "NUM_SLICES is 'x'"),
        (GKE | {'TPU_PROCESS_ADDRESSES_PATH': '/no/file'}, 'ADDRESSES_PATH'),
    ],
)
def test_variables_that_cannot_be_are_named(environ, text):
  with pytest.raises(errors.UsageError, match=text) as raised:
    cluster.find(environ={'TPU_SKIP_MDS_QUERY': '1'} | environ)
  assert '\n' not in str(raised.value)


# Environments that JAX detects by itself, and its class for each.
DETECTED = {
    # JAX drops what stands behind the bracket of `gpu[003-005]-ib`.
    'SLURM': (
        SLURM | {'SLURM_STEP_NODELIST': 'gpu[003-005,9],other'},
        slurm_cluster.SlurmCluster,
    ),
    'SLURM, a port': (
        SLURM | {'JAX_COORDINATOR_PORT': '7', 'SLURM_STEP_NODELIST': 'n1,n2'},
        slurm_cluster.SlurmCluster,
    ),
    'Open MPI 4': (MPI, ompi_cluster.OmpiCluster),
    'GKE': (GKE, cloud_tpu_cluster.GkeTpuCluster),
    'GKE, several slices': (SLICES, cloud_tpu_cluster.GkeTpuCluster),
    'GKE, addresses': (
        GKE | {'TPU_PROCESS_ADDRESSES': 'a:8471,b:8471,c:8471'},
        cloud_tpu_cluster.GkeTpuCluster,
    ),
    'GKE, a file of addresses': (
        GKE | {'TPU_PROCESS_ADDRESSES_PATH': 'FILE'},
        cloud_tpu_cluster.GkeTpuCluster,
    ),
}


@pytest.mark.parametrize('name', DETECTED)
def test_what_jax_detects_is_found(monkeypatch, tmp_path, name):
  environ, detected = DETECTED[name]
  if 'TPU_PROCESS_ADDRESSES_PATH' in environ:
    (tmp_path / 'addresses').write_text('p:1,q:1,r:1\n')
    file = str(tmp_path / 'addresses')
    environ = environ | {'TPU_PROCESS_ADDRESSES_PATH': file}
    if 'ADDRESSES_PATH' not in inspect.getsource(cloud_tpu_cluster):
      # JAX before 0.11 does not read the file: what it says, in a variable.
      monkeypatch.setenv('TPU_PROCESS_ADDRESSES', 'p:1,q:1,r:1')
  for variable, value in environ.items():
    monkeypatch.setenv(variable, value)
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', lambda _: ('', 404))
  wait = lambda *_: None
  monkeypatch.setattr(detected, 'wait_for_coordinator', wait, raising=False)
  assert detected.is_env_present()
  port = environ.get('JAX_COORDINATOR_PORT')
  wanted = (
      detected.get_coordinator_address(1, port),
      detected.get_process_count(),
      detected.get_process_id(),
  )
  assert cluster.find(environ=environ)[1:4] == wanted


def test_what_jax_reads_from_the_metadata_is_found(monkeypatch, vm):
  attributes, environ = vm
  attributes |= {
      'worker-network-endpoints': 'n:0:10.0.1.2,n:1:10.0.1.3',
      'agent-worker-number': '1',
      'tpu-env': (
          "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
          "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.2:8080'\n"
      ),
  }
  monkeypatch.setenv('GCE_METADATA_IP', environ['GCE_METADATA_IP'])
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)
  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  detected = cloud_tpu_cluster.GceTpuCluster
  monkeypatch.setattr(detected, 'wait_for_coordinator', lambda *_: None)
  assert detected.is_env_present()
  assert cluster.find(environ=environ)[1:4] == (
      detected.get_coordinator_address(1, None),
      detected.get_process_count(),
      detected.get_process_id(),
  )


def test_a_platform_that_is_not_there_is_named(monkeypatch):
  def fail():
    raise RuntimeError("Unable to initialize backend 'rocm': no such plugin")

  before = jax.config.jax_platforms
  monkeypatch.setattr(cluster, 'find', lambda *_: None)
  monkeypatch.setattr(jax, 'devices', fail)
  with pytest.raises(errors.UsageError, match=f"JAX_PLATFORMS is '{before}'"):
    start.join()


def test_start_does_nothing_for_one_process(monkeypatch):
  monkeypatch.setenv('SLURM_NTASKS', '1')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'localhost')
  start.join()
  assert not jax.distributed.is_initialized()


def test_a_process_alone_keeps_its_programs(monkeypatch, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(cluster, 'find', lambda *_: None)
  start.join()
  assert jax.config.jax_compilation_cache_dir == before  # the user's own
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    start.join()
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(f'{tmp_path}/irepa_jax/xla-')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def meet(*places, timeout=20, report_every=30, delays=None):
  """Lets processes (index, count) meet; returns their errors, None if none."""
  address = f'127.0.0.1:{free_port()}'
  results = [None] * len(places)

  def run(i, index, count):
    time.sleep((delays or {}).get(i, 0))
    me = cluster.Processes('the test', address, count, index)
    try:
      rendezvous.meet(me, timeout=timeout, report_every=report_every)
    except errors.UsageError as error:
      results[i] = str(error)

  threads = [
      threading.Thread(target=run, args=(i, *place))
      for i, place in enumerate(places)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  return results


def test_all_processes_meet_in_any_order():
  assert meet((2, 3), (1, 3), (0, 3), delays={2: 0.6}) == [None] * 3


def test_missing_processes_are_named(monkeypatch):
  lines = []
  monkeypatch.setattr(
      rendezvous.logging, 'warning', lambda text, *a: lines.append(text % a)
  )
  first, last = meet((0, 4), (3, 4), timeout=1.5, report_every=0.6)
  assert first == last
  assert '2 of 4 processes did not start within 1.5 s: process 1, 2' in first
  assert 'on every host' in first
  told = [line for line in lines if 'waiting for 2 of 4 processes (' in line]
  assert len(told) >= 2  # by process 0 and by process 3


def test_a_missing_first_process_is_named():
  (error,) = meet((1, 2), timeout=0.3)
  assert 'process 0 of 2 did not answer' in error


def test_two_processes_of_one_place_are_refused():
  found = meet((0, 3), (1, 3), (1, 3))
  assert all('two processes say that they are process 1' in e for e in found)


def test_processes_that_count_differently_are_refused():
  found = meet((0, 3), (3, 4))
  assert all('expects 3 processes' in e and '3 of 4' in e for e in found)


def test_a_stranger_at_the_port_is_ignored():
  address = f'127.0.0.1:{free_port()}'
  host, port = address.split(':')

  def run(index):
    me = cluster.Processes('the test', address, 2, index)
    rendezvous.meet(me, timeout=20)

  first = threading.Thread(target=run, args=(0,))
  first.start()
  for _ in range(100):
    with contextlib.suppress(ConnectionError):
      with socket.create_connection((host, port)) as stranger:
        stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
      break
    time.sleep(0.05)
  run(1)
  first.join(20)
  assert not first.is_alive()


def test_a_port_in_use_is_named():
  with socket.socket() as other:
    other.bind(('', 0))
    other.listen()
    me = cluster.Processes('test', f'x:{other.getsockname()[1]}', 2, 0)
    with pytest.raises(errors.UsageError, match='cannot listen at port'):
      rendezvous.meet(me, timeout=1)


def test_agree_is_silent_for_one_process():
  processes.agree({'config': {'seed': 1}})


def test_difference_names_the_odd_process():
  usual = {'config.seed': '0', 'data': '"a"'}
  line = processes._difference(
      ['h0', 'h1', 'h2'], [usual | {'config.seed': '1'}, usual, usual]
  )
  assert 'config.seed is 1 on process 0 (h0), 0 on process 1.' in line


def test_processes_that_differ_are_told_which():
  results = multihost.run(
      """
      from irepa_jax import errors
      from irepa_jax.distributed import processes
      same = {'config': {'seed': 0, 'betas': (0.9, 0.95)}, 'data': 'abc'}
      processes.agree(same)
      try:
        processes.agree(same | {'config': {'seed': rank, 'lr': 'x' * rank}})
      except errors.UsageError as error:
        result(line=str(error))
      """,
      processes=2,
      devices=1,
  )
  lines = [each[0]['line'] for each in results]
  assert lines[0] == lines[1]
  assert 'config.seed is 1 on process 1' in lines[0]
  assert ', 0 on process 0' in lines[0]
  assert 'data' not in lines[0] and 'software' not in lines[0]
