"""Liveness: the hosts of a run notice when one is lost, and end together.

Process 0 has a connection to each of the others. A process that dies closes its
connection, which the others notice at once, before JAX's collectives do; they
end with exit code `LOST`, and the last line that they print is the reason.
JAX's own service and Gloo would end them by SIGABRT, and name no host.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

LOST = 69  # exit code: a host was lost
_BEATS = 4  # heartbeats within the timeout
_PARTING_S = 3.0  # for the others to end before process 0 and JAX's service


def delay_aborts() -> None:
  """Makes a thread that aborts sleep first, for six seconds.

  Gloo and JAX's service abort a process from threads of their own soon after
  another is lost, often before it is known here which one. Other threads run
  during the sleep, report the lost host and end the process; an abort for
  another reason happens after it. (A SIGABRT from outside, without abort(), is
  no more than the sleep.)

  The handler is the C library's own `sleep`, called with the signal's number,
  6: Python's handlers wait for the main thread, which abort() does not.
  """
  library = ctypes.CDLL(None)
  library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  library.signal.restype = ctypes.c_void_p
  library.signal(
      signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p).value
  )


class Link:
  """A connection that carries JSON objects, one per line; thread-safe."""

  def __init__(self, connection: socket.socket):
    self._socket = connection
    self._lines = connection.makefile('rb')
    self._writing = threading.Lock()

  def send(self, **message: Any) -> None:
    """Sends a message; that nobody is there any more the reader notices."""
    try:
      with self._writing:
        self._socket.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      pass

  def receive(self, timeout: float) -> dict[str, Any]:
    """The next message.

    Raises:
      TimeoutError: there was none.
      OSError: the other side is gone.
      ValueError: what came is not a message.
    """
    self._socket.settimeout(timeout)
    line = self._lines.readline()
    if not line.endswith(b'\n'):
      raise ConnectionResetError('the connection was closed')
    message = json.loads(line)
    if not isinstance(message, dict):
      raise ValueError(f'{message!r} is not a message.')
    return message

  def close(self) -> None:
    self._lines.close()
    self._socket.close()


class Watch:
  """What this process knows of the others, kept up to date by threads.

  Process 0 has a link to each of the others, which have one to it; messages to
  all go through process 0.
  """

  def __init__(
      self,
      index: int,
      names: dict[int, str],
      links: dict[int, Link],
      heartbeat_timeout: float,
  ):
    self.name = names[index]
    self._index = index
    self._names = names
    self._links = links
    self._timeout = heartbeat_timeout
    self._parted = False
    self._over: set[int] = set()  # peers that have announced their end
    self._gone: set[int] = set()  # peers whose link is closed
    self._ending = threading.Lock()
    # For stopping together, see `stop_here`.
    self._changed = threading.Condition()
    self._calls = 0
    self._asked = self._halting = False
    self._at: dict[int, int] = {}
    self._stop_at: int | None = None
    for peer in links:
      threading.Thread(target=self._read, args=(peer,), daemon=True).start()
    threading.Thread(target=self._beat, daemon=True).start()

  def stop_here(self, asked: bool) -> bool:
    """Whether to stop at this call; it is the same call on all hosts.

    Costs nothing until one host is asked to stop. Then each reports how many
    calls it has made and waits in its next one, until process 0 knows the
    largest number: all stop one call after that.

    Args:
      asked: whether this process was asked to stop.
    """
    with self._changed:
      self._calls += 1
      if asked and not self._asked:
        self._asked = True
        self._tell(0, stop=True)
      if self._halting or self._asked:
        self._changed.wait_for(lambda: self._stop_at is not None)
      return self.stopped

  @property
  def stopped(self) -> bool:
    """Whether all have been told to stop, and have."""
    return self._stop_at is not None and self._calls >= self._stop_at

  def part(self) -> None:
    """Announces that this process is done and not lost."""
    self._tell_all(ended=0)
    self._parted = True  # only now: from here on links may close at any time

  def fail(self, code: int, why: str) -> NoReturn:
    """Ends this process, which has printed why, and all others."""
    self._end(code, f'host {self.name} ended: {why}', is_printed=True)

  def _beat(self) -> None:
    while len(self._gone) < len(self._links):
      time.sleep(self._timeout / _BEATS)
      self._tell_all(beat=True)

  def _read(self, peer: int) -> None:
    """Handles what a peer sends, for as long as it lives."""
    why = ''
    while not (why or self._parted and peer in self._over):
      try:
        self._take(peer, self._links[peer].receive(self._timeout))
      except TimeoutError:
        why = f'no sign of life for {self._timeout:g} s'
      except (OSError, ValueError):
        why = 'its process ended without notice'
    self._links[peer].close()
    self._gone.add(peer)
    if peer not in self._over:
      self._end(
          LOST,
          f'host {self._names[peer]} was lost: {why}. Start all hosts again: a'
          ' run resumes from its last checkpoint.',
      )

  def _take(self, peer: int, message: dict[str, Any]) -> None:
    if 'ended' in message:
      self._over.add(peer)
      if message['ended']:
        self._end(message['ended'], message['why'])
    elif 'stop' in message:
      with self._changed:
        if not self._halting:
          self._tell_all(halt=True)
          self._halt()
    elif 'halt' in message:
      with self._changed:
        self._halt()
    elif 'at' in message:
      with self._changed:
        self._at[peer] = message['at']
        if len(self._at) == len(self._names):
          call = max(self._at.values()) + 1
          self._tell_all(stop_at=call)
          self._decide(call)
    elif 'stop_at' in message:
      with self._changed:
        self._decide(message['stop_at'])

  def _halt(self) -> None:
    self._halting = True
    self._tell(0, at=self._calls)

  def _decide(self, call: int) -> None:
    self._stop_at = call
    self._changed.notify_all()

  def _tell(self, peer: int, **message: Any) -> None:
    if peer != self._index:
      self._links[peer].send(**message)
    else:
      self._take(peer, message)

  def _tell_all(self, **message: Any) -> None:
    for link in self._links.values():
      link.send(**message)

  def _end(self, code: int, why: str, is_printed: bool = False) -> NoReturn:
    with self._ending:  # never released: the first reason counts
      if not is_printed:
        print(f'distillspec: {why}', file=sys.stderr)
      self._tell_all(ended=code, why=why)
      # Process 0 ends last, because JAX's service ends with it.
      until = time.monotonic() + _PARTING_S
      while (
          not self._index
          and set(self._links) - self._gone
          and time.monotonic() < until
      ):
        time.sleep(0.02)
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
