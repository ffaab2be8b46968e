"""One process at a time; one that was killed does not stand in the way."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import locks

HOLDER = """
import sys, time
from distillspec_jax.distributed import locks
with locks.held(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'run' / locks.FILE


@pytest.fixture
def holder(path):
  """Another process that holds the lock."""
  process = subprocess.Popen(
      [sys.executable, '-c', HOLDER, path],
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parents[2],
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_the_second_process_is_refused_and_told_who_holds_it(path, holder):
  before = path.read_text()
  with pytest.raises(errors.UserError) as raised:
    with locks.held(path):
      pass
  message = str(raised.value)
  assert f'{path.parent} is in use by process {holder.pid} on' in message
  with pytest.raises(errors.UserError, match=f'process {holder.pid}'):
    locks.check_free(path.parent)
  assert path.read_text() == before


def test_a_lock_of_a_process_that_was_killed_is_taken_over(path, holder):
  holder.send_signal(signal.SIGKILL)
  deadline = time.monotonic() + 20
  while pathlib.Path(f'/proc/{holder.pid}/stat').read_text().split()[2] not in (
      'ZX'
  ):
    assert time.monotonic() < deadline
  locks.check_free(path.parent)  # a zombie counts as gone
  with locks.held(path) as lock:
    lock.check()
    assert json.loads(path.read_text())['pid'] == os.getpid()
  assert not path.exists()


def test_another_process_with_the_same_number_is_not_the_holder(path):
  with locks.held(path):
    values = json.loads(path.read_text())
  path.write_text(json.dumps({**values, 'started': '1'}))
  with locks.held(path) as lock:
    lock.check()


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(locks, '_SILENCE_S', 0.4)


def elsewhere(path, beats=0):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps({'host': 'other', 'pid': 1, 'beats': beats}))


def test_a_silent_holder_on_another_machine_counts_as_gone(path, quick, capfd):
  elsewhere(path)
  with locks.held(path) as lock:
    lock.check()
  assert 'process 1 on other; waiting' in capfd.readouterr().err


def test_a_holder_on_another_machine_is_recognised_by_its_beats(
    path, quick, monkeypatch
):
  elsewhere(path)
  monkeypatch.setattr(locks.time, 'sleep', lambda _: elsewhere(path, 1))
  with pytest.raises(errors.UserError, match='process 1 on other'):
    with locks.held(path):
      pass


def test_a_file_that_is_no_lock_yet_is_waited_for(path, quick):
  path.parent.mkdir()
  path.write_text('')  # a process that was killed while it wrote it
  with locks.held(path) as lock:
    lock.check()


def test_the_holder_gives_signs_of_life(path, monkeypatch):
  monkeypatch.setattr(locks, '_BEAT_S', 0.02)
  with locks.held(path) as lock:
    deadline = time.monotonic() + 20
    while json.loads(path.read_text())['beats'] < 2:
      assert time.monotonic() < deadline
    lock.check()
  assert not list(path.parent.iterdir())


def test_a_folder_that_is_gone_and_a_lock_that_was_taken_are_noticed(path):
  with locks.held(path) as lock:
    path.write_text(json.dumps({'token': 'x', 'pid': 3, 'host': 'h'}))
    with pytest.raises(errors.Failed, match='taken over by process 3 on h'):
      lock.check()
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(errors.Failed, match='run was removed'):
      lock.check()
  assert not path.parent.exists()


def test_a_full_disk_leaves_no_lock_behind(path, monkeypatch):
  def fail(self, text):
    self.touch()
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_text', fail)
    with pytest.raises(OSError, match='No space'):
      with locks.held(path):
        pass
  assert not list(path.parent.iterdir())
  with locks.held(path):
    pass


def test_only_the_first_host_locks(path, monkeypatch):
  monkeypatch.setattr(locks.hosts, 'is_first', lambda: False)
  with locks.held(path) as lock:
    lock.check()
    assert not path.exists()
