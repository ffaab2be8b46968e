"""What a process makes of flags, environment and cluster."""

import pathlib
import subprocess
import sys

import pytest

import distillspec_jax
from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts
from distillspec_jax.distributed import liveness
from tests.distributed import loopback

ALL = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch):
  for name in (*ALL, 'KUBERNETES_SERVICE_HOST', 'SLURM_JOB_ID'):
    monkeypatch.delenv(name, raising=False)


def test_alone_where_nothing_is_said():
  assert hosts.find() is None


def test_one_process_looks_no_further(monkeypatch):
  monkeypatch.setattr(hosts, '_detected', None)
  assert hosts.find(process_count=1) is None


def test_flags_win_over_the_environment(monkeypatch):
  for name, value in zip(ALL, ('h:1', '4', '2')):
    monkeypatch.setenv(name, value)
  assert hosts.find() == hosts.Place('h:1', 4, 2)
  assert hosts.find(process_index=0) == hosts.Place('h:1', 4, 0)


def test_slurm_tells_each_its_place(monkeypatch):
  for name, value in {
      'SLURM_JOB_ID': '8',
      'SLURM_STEP_NODELIST': 'node[03-06]',
      'SLURM_NTASKS': '4',
      'SLURM_PROCID': '3',
      'SLURM_LOCALID': '0',
  }.items():
    monkeypatch.setenv(name, value)
  place = hosts.find()
  assert place == hosts.Place('node03:61448', 4, 3, [0])
  monkeypatch.setenv('SLURM_NTASKS', '1')
  assert hosts.find() is None


def test_a_container_is_no_cluster(monkeypatch):
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  assert hosts.find() is None


@pytest.mark.parametrize(
    'given, message',
    [
        (
            {'coordinator': 'h:1'},
            '--coordinator=h:1 is given, but --process_count and'
            ' --process_index are not',
        ),
        (
            {'process_count': 2, 'process_index': 0},
            '--process_count=2 and --process_index=0 are given, but'
            ' --coordinator is not',
        ),
        ({'process_index': 2}, '--process_index is 2 and --process_count 2'),
        ({'process_count': 0}, '--process_index is 0 and --process_count 0'),
        ({'coordinator': 'h'}, "--coordinator is 'h'; it must be HOST:PORT"),
        ({'coordinator': 'h:99999'}, 'must be HOST:PORT'),
    ],
)
def test_flags_that_make_no_sense_are_refused(given, message):
  if len(given) == 1 and 'is given' not in message:
    given = {
        'coordinator': 'h:1', 'process_count': 2, 'process_index': 0, **given
    }  # fmt: skip
  with pytest.raises(errors.UserError) as caught:
    hosts.find(**given)
  assert message in str(caught.value)


def test_a_variable_that_is_no_number_is_refused(monkeypatch):
  monkeypatch.setenv('JAX_PROCESS_ID', 'two')
  with pytest.raises(errors.UserError, match="JAX_PROCESS_ID is 'two'"):
    hosts.find()


@pytest.mark.parametrize('name', ['start_timeout', 'heartbeat_timeout'])
def test_times_below_a_second_are_refused(name):
  with pytest.raises(errors.UserError, match=f'--{name} is 0.5'):
    hosts.start(hosts.Place('h:1', 2, 0), **{name: 0.5})


ABORTING = """
import ctypes, os, sys, threading, time
from distillspec_jax.distributed import hosts, liveness
hosts.start(hosts.Place(f'127.0.0.1:{sys.argv[1]}', 1, 0))
threading.Thread(target=ctypes.CDLL(None).abort).start()
time.sleep(1)
os._exit(liveness.LOST)
"""


def test_an_abort_waits_once_hosts_are_started():
  child = subprocess.run(
      [sys.executable, '-c', ABORTING, str(loopback.free_port())],
      cwd=pathlib.Path(distillspec_jax.__file__).parents[1],
      timeout=120,
  )
  assert child.returncode == liveness.LOST
