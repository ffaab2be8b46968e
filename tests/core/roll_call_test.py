"""The roll call over loopback, a thread for each process."""

from concurrent import futures
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import roll_call


def free_port():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    return taken.getsockname()[1]


def host(index, count, text='a = 1\nb = 2', **changes):
  known = roll_call.Host(index, count, f'h{index}', str(hash(text)), text)
  return known._replace(**changes)


def meet(*hosts, seconds=30.0):
  """What each host gets of the roll call: its watch, or its error."""
  address = f'127.0.0.1:{free_port()}'

  def one(me):
    try:
      return roll_call.meet(address, me, seconds, 30.0)
    except (errors.UserError, errors.Failed) as error:
      return error

  with futures.ThreadPoolExecutor(len(hosts)) as pool:
    return list(pool.map(one, hosts))


def same_error(kind, found):
  """The message that all got, an error of that kind."""
  assert {type(error) for error in found} == {kind}, found
  (message,) = {str(error) for error in found}
  return message


def test_all_learn_who_is_there():
  found = meet(*(host(i, 3) for i in range(3)))
  assert [watch.name for watch in found] == ['0 (h0)', '1 (h1)', '2 (h2)']
  for watch in found:
    watch.part()


def test_who_is_missing_is_said_to_all():
  message = same_error(errors.Failed, meet(host(0, 4), host(2, 4), seconds=1.5))
  assert message.startswith(
      'Hosts 1, 3 of 4 did not come within 1.5 s; 0 (h0), 2 (h2) did.'
  )


def test_a_coordinator_that_does_not_answer_is_named():
  address = f'127.0.0.1:{free_port()}'
  with pytest.raises(errors.Failed) as caught:
    roll_call.meet(address, host(1, 2), 1.0, 30.0)
  message = str(caught.value)
  assert f'{address} did not answer process 1 for 1 s' in message
  assert 'connection refused' in message


def test_another_configuration_is_refused_with_both_shown():
  found = meet(
      host(0, 3, hash='aa'),
      host(1, 3, text='a = 1\nb = 3', hash='bb'),
      host(2, 3, hash='aa'),
  )
  message = same_error(errors.UserError, found)
  assert 'aa of hosts 0 (h0), 2 (h2) and bb of host 1 (h1)' in message
  assert 'differ in: -b = 2; +b = 3.' in message


@pytest.mark.parametrize(
    'second, message',
    [
        (host(1, 3), 'told of 2 processes and process 1 \\(h1\\) of 3'),
        (host(0, 2, name='twin'), 'themselves 0 of 2: h0 and twin'),
    ],
)
def test_hosts_that_are_confused_are_refused(second, message):
  # Sent by hand: as process 0, `meet` would listen itself.
  port = free_port()

  def send():
    return roll_call._answer(
        f'127.0.0.1:{port}', second, 30.0, time.monotonic() + 30.0
    )

  with futures.ThreadPoolExecutor(1) as pool:
    sent = pool.submit(send)
    with pytest.raises(errors.UserError, match=message):
      roll_call.meet(f'127.0.0.1:{port}', host(0, 2), 30.0, 30.0)
    with pytest.raises(errors.UserError, match=message):
      sent.result()


def test_a_stranger_at_the_door_is_sent_away():
  port = free_port()

  def knock():
    while True:
      try:
        with socket.create_connection(('127.0.0.1', port)) as stranger:
          stranger.sendall(b'GET / HTTP/1.1\r\n')
          return
      except ConnectionRefusedError:
        continue

  with futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(
        roll_call.meet, f'127.0.0.1:{port}', host(0, 2), 30.0, 30.0
    )
    knock()
    second = roll_call.meet(f'127.0.0.1:{port}', host(1, 2), 30.0, 30.0)
    for watch in (first.result(), second):
      watch.part()


def test_a_port_that_is_taken_is_refused():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(errors.UserError, match=f'cannot listen at port {port}'):
      roll_call.meet(f'127.0.0.1:{port}', host(0, 2), 5.0, 30.0)


@pytest.mark.parametrize('asked', [0, 2])
def test_all_stop_at_the_same_call(asked):
  watches = meet(*(host(i, 3) for i in range(3)))
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
from distillspec_jax.core import roll_call
index, port, end = int(sys.argv[1]), sys.argv[2], sys.argv[3]
me = roll_call.Host(index, 3, f'h{index}', '', '')
watch = roll_call.meet(f'127.0.0.1:{port}', me, 60.0, float(sys.argv[4]))
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
        ('SIGKILL', 60, 0, 69, 'host 0 (h0) was lost: its process ended'),
        ('SIGSTOP', 2, 2, 69, 'host 2 (h2) was lost: nothing was heard of it'),
    ],
)
def test_the_end_of_one_is_the_end_of_all(end, timeout, victim, code, message):
  port = str(free_port())
  children = [
      subprocess.Popen(
          [sys.executable, '-c', CHILD, str(i), port, end, str(timeout)]
          + [str(victim)],
          cwd=pathlib.Path(roll_call.__file__).parents[2],
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
