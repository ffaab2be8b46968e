"""What becomes of all hosts when one stops, fails or is lost."""

from concurrent import futures
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

import distillspec_jax
from distillspec_jax.distributed import liveness
from tests.distributed import loopback


@pytest.mark.parametrize('asked', [0, 2])
def test_all_stop_at_the_same_call(asked):
  watches = loopback.meet(*(loopback.host(i, 3) for i in range(3)))
  step = threading.Barrier(3)  # none is more than a step ahead, as in training

  def run(index):
    for number in range(1, 1000):
      if watches[index].stop_here(index == asked and number >= 20):
        step.abort()
        return number
      try:
        step.wait()
      except threading.BrokenBarrierError:
        pass
    return None

  with futures.ThreadPoolExecutor(3) as pool:
    stopped = list(pool.map(run, range(3)))
  assert len(set(stopped)) == 1 and 20 <= stopped[0] < 1000
  for watch in watches:
    assert watch.stopped
    watch.part()


# The exit code of a process is asked of a process; it needs no JAX.
CHILD = """
import sys, time
from distillspec_jax.distributed import rendezvous
index, port, end = int(sys.argv[1]), sys.argv[2], sys.argv[3]
me = rendezvous.Host(index, 3, f'h{index}', '', '')
watch = rendezvous.meet(f'127.0.0.1:{port}', me, 60.0, float(sys.argv[4]))
if index == int(sys.argv[5]):
  if end == 'fail':
    watch.fail(2, 'x is 9')
  import os, signal
  os.kill(os.getpid(), getattr(signal, end))
time.sleep(60)
"""


@pytest.mark.parametrize(
    'end, timeout, victim, code, message',
    [
        ('fail', 60, 1, 2, 'host 1 (h1) ended: x is 9'),
        (
            'SIGKILL',
            60,
            0,
            liveness.LOST,
            'host 0 (h0) was lost: its process ended',
        ),
        (
            'SIGSTOP',
            2,
            2,
            liveness.LOST,
            'host 2 (h2) was lost: no sign of life',
        ),
    ],
)
def test_the_end_of_one_is_the_end_of_all(end, timeout, victim, code, message):
  port = str(loopback.free_port())
  children = [
      subprocess.Popen(
          [sys.executable, '-c', CHILD, str(i), port, end, str(timeout)]
          + [str(victim)],
          cwd=pathlib.Path(distillspec_jax.__file__).parents[1],
          stderr=subprocess.PIPE,
          text=True,
      )
      for i in range(3)
  ]
  try:
    for i, child in enumerate(children):
      if i != victim:
        said = child.communicate(timeout=50)[1]
        assert child.returncode == code, said
        assert said.startswith(f'distillspec: {message}'), said
        assert said.count('\n') == 1
  finally:
    for child in children:
      child.kill()
      child.communicate()


# A library aborts in a thread of its own, and a second later the watch knows.
ABORTING = """
import ctypes, os, sys, threading, time
from distillspec_jax.distributed import liveness
if sys.argv[1] == 'delayed':
  liveness.delay_aborts()
threading.Thread(target=ctypes.CDLL(None).abort).start()
if sys.argv[2] == 'known':
  time.sleep(1)
  os._exit(liveness.LOST)
time.sleep(60)
"""


@pytest.mark.parametrize(
    'abort, reason, code',
    [
        ('delayed', 'known', liveness.LOST),
        ('delayed', 'unknown', -signal.SIGABRT),
        ('at once', 'known', -signal.SIGABRT),
    ],
)
def test_an_abort_leaves_time_for_the_reason(abort, reason, code):
  child = subprocess.run(
      [sys.executable, '-c', ABORTING, abort, reason],
      cwd=pathlib.Path(distillspec_jax.__file__).parents[1],
      timeout=50,
  )
  assert child.returncode == code
