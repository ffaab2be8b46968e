"""The roll call over loopback, a thread for each process."""

from concurrent import futures
import socket
import time

import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import rendezvous
from tests.distributed import loopback


def same_error(kind, found):
  """The message that all got, an error of that kind."""
  assert {type(error) for error in found} == {kind}, found
  (message,) = {str(error) for error in found}
  return message


def test_all_learn_who_is_there():
  found = loopback.meet(*(loopback.host(i, 3) for i in range(3)))
  assert [watch.name for watch in found] == ['0 (h0)', '1 (h1)', '2 (h2)']
  for watch in found:
    watch.part()


def test_who_is_missing_is_said_to_all():
  message = same_error(
      errors.Failed,
      loopback.meet(loopback.host(0, 4), loopback.host(2, 4), seconds=1.5),
  )
  assert message.startswith(
      'Hosts 1, 3 of 4 did not come within 1.5 s; 0 (h0), 2 (h2) did.'
  )


def test_a_coordinator_that_does_not_answer_is_named():
  address = f'127.0.0.1:{loopback.free_port()}'
  with pytest.raises(errors.Failed) as caught:
    rendezvous.meet(address, loopback.host(1, 2), 1.0, 30.0)
  message = str(caught.value)
  assert f'{address} did not answer process 1 for 1 s' in message
  assert 'connection refused' in message


def test_another_configuration_is_refused_with_both_shown():
  found = loopback.meet(
      loopback.host(0, 3, hash='aa'),
      loopback.host(1, 3, text='a = 1\nb = 3', hash='bb'),
      loopback.host(2, 3, hash='aa'),
  )
  message = same_error(errors.UserError, found)
  assert 'aa of hosts 0 (h0), 2 (h2) and bb of host 1 (h1)' in message
  assert 'differ in: -b = 2; +b = 3.' in message


@pytest.mark.parametrize(
    'second, message',
    [
        (
            loopback.host(1, 3),
            'told of 2 processes and process 1 \\(h1\\) of 3',
        ),
        (loopback.host(0, 2, name='twin'), 'themselves 0 of 2: h0 and twin'),
    ],
)
def test_hosts_that_are_confused_are_refused(second, message):
  # Sent by hand: as process 0, `meet` would listen itself.
  port = loopback.free_port()

  def send():
    return rendezvous._answer(
        f'127.0.0.1:{port}', second, 30.0, time.monotonic() + 30.0
    )

  with futures.ThreadPoolExecutor(1) as pool:
    sent = pool.submit(send)
    with pytest.raises(errors.UserError, match=message):
      rendezvous.meet(f'127.0.0.1:{port}', loopback.host(0, 2), 30.0, 30.0)
    with pytest.raises(errors.UserError, match=message):
      sent.result()


def test_a_stranger_at_the_door_is_sent_away():
  port = loopback.free_port()

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
        rendezvous.meet, f'127.0.0.1:{port}', loopback.host(0, 2), 30.0, 30.0
    )
    knock()
    second = rendezvous.meet(
        f'127.0.0.1:{port}', loopback.host(1, 2), 30.0, 30.0
    )
    for watch in (first.result(), second):
      watch.part()


def test_a_port_that_is_taken_is_refused():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(errors.UserError, match=f'cannot listen at port {port}'):
      rendezvous.meet(f'127.0.0.1:{port}', loopback.host(0, 2), 5.0, 30.0)
