"""The hosts of a run call each other, before JAX, and stay in touch after it.

Process 0 listens at the coordinator's address until all have come, compares
what they are about to do, and tells all of them the same: go, or why not. The
connections stay open. A process that dies closes its own, which the others see
at once, however JAX or its collectives would have taken it; they end with
`LOST`, the reason being the last line that they print.

JAX's own service, which listens there next, ends a process by SIGABRT when a
host is missing or lost, and names none.
"""

from __future__ import annotations

from collections.abc import Iterable
import difflib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

from distillspec_jax.core import errors

LOST = 69  # exit code: a host was lost
_BEATS = 4  # heartbeats in the time after which a silent host is lost
_GREETING_S = 10.0  # for one that has connected to say who it is
_RETRY_S = 0.3
_PARTING_S = 3.0  # for the others to end before process 0 and JAX's service do


class Host(NamedTuple):
  """What a process says of itself.

  Attributes:
    index: of the process, from 0.
    count: of processes, as it was told.
    name: of the machine.
    hash: of the configuration.
    text: the configuration.
  """

  index: int
  count: int
  name: str
  hash: str
  text: str

  def __str__(self) -> str:
    return f'{self.index} ({self.name})'


class _Link:
  """A connection that carries JSON objects, one a line, of any thread."""

  def __init__(self, connection: socket.socket):
    self._socket = connection
    self._lines = connection.makefile('rb')
    self._writing = threading.Lock()

  def send(self, **message: Any) -> None:
    """Sends it, unless nobody is there any more: the reader notices that."""
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
      ValueError: it speaks another language.
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


def meet(
    address: str, me: Host, start_timeout: float, heartbeat_timeout: float
) -> Watch:
  """Returns when all hosts are there and are about to do the same.

  Args:
    address: 'HOST:PORT' of process 0.
    me: this process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a host is lost.

  Raises:
    UserError: the hosts have different configurations, or do not agree on who
      they are, or process 0 cannot listen.
    Failed: a host did not come, or process 0 does not answer.
  """
  deadline = time.monotonic() + start_timeout
  if me.index == 0:
    port = int(address.rpartition(':')[2])
    links, hosts = _call(port, me, start_timeout, deadline)
    names = {host.index: str(host) for host in hosts}
  else:
    link, names = _answer(address, me, start_timeout, deadline)
    links = {0: link}
  return Watch(me.index, names, links, heartbeat_timeout)


def _call(
    port: int, me: Host, start_timeout: float, deadline: float
) -> tuple[dict[int, _Link], list[Host]]:
  """Process 0: a link to each of the others, once all have come."""
  came: dict[int, Host] = {0: me}
  links: dict[int, _Link] = {}
  with _listen(port) as server:
    wrong: errors.UserError | errors.Failed | None = None
    while len(came) < me.count and wrong is None:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        link = _Link(server.accept()[0])
      except TimeoutError:
        wrong = _missing(me.count, came.values(), start_timeout)
        break
      try:
        host = Host(**link.receive(_GREETING_S))
      except (OSError, TypeError, ValueError):
        link.close()  # not one of ours
        continue
      if host.count != me.count or host.index in came:
        links[-1] = link
        wrong = _confused(me, came.get(host.index), host)
      else:
        came[host.index], links[host.index] = host, link
  wrong = wrong or _different(list(came.values()))
  if wrong is not None:
    for link in links.values():
      link.send(wrong=str(wrong), bad_input=isinstance(wrong, errors.UserError))
      link.close()
    raise wrong
  for link in links.values():
    link.send(names={host.index: str(host) for host in came.values()})
  return links, list(came.values())


def _listen(port: int) -> socket.socket:
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(
          ('', port), family=socket.AF_INET6, dualstack_ipv6=True
      )
    return socket.create_server(('', port))
  except OSError as error:
    raise errors.UserError(
        f'Process 0 cannot listen at port {port}: {error.strerror}. Name'
        ' another port in --coordinator, on all hosts.'
    ) from error


def _answer(
    address: str, me: Host, start_timeout: float, deadline: float
) -> tuple[_Link, dict[int, str]]:
  """Another process: the link to process 0, and the names of all."""
  name, _, port = address.rpartition(':')
  while True:
    left = deadline - time.monotonic()
    link = None
    try:
      link = _Link(
          socket.create_connection(
              (name.strip('[]'), int(port)), timeout=max(left, 0.001)
          )
      )
      link.send(**me._asdict())
      # Its time may have begun when ours ended.
      verdict = link.receive(start_timeout + _GREETING_S)
      break
    except (OSError, ValueError) as error:
      if link is not None:
        link.close()
      if time.monotonic() + _RETRY_S >= deadline:
        raise errors.Failed(
            f'The coordinator {address} did not answer process {me.index} for'
            f' {start_timeout:g} s ({_reason(error)}). Is process 0 running,'
            ' and may this host reach that port of it? Or give it longer with'
            ' --start_timeout.'
        ) from error
      time.sleep(_RETRY_S)
  if 'wrong' in verdict:
    link.close()
    kind = errors.UserError if verdict['bad_input'] else errors.Failed
    raise kind(verdict['wrong'])
  return link, {int(index): name for index, name in verdict['names'].items()}


def _reason(error: Exception) -> str:
  return (getattr(error, 'strerror', None) or str(error)).lower()


def _missing(count: int, came: Iterable[Host], timeout: float) -> errors.Failed:
  came = sorted(came)
  there = {host.index for host in came}
  absent = [str(i) for i in range(count) if i not in there]
  many = len(absent) > 1
  return errors.Failed(
      f'{"Hosts" if many else "Host"} {", ".join(absent)} of {count} did not'
      f' come within {timeout:g} s; {", ".join(map(str, came))} did. Look at'
      f' the output of {"those" if many else "that one"}, or give it longer'
      ' with --start_timeout.'
  )


def _confused(me: Host, twin: Host | None, host: Host) -> errors.UserError:
  if twin is not None and host.count == me.count:
    return errors.UserError(
        f'Two processes call themselves {host.index} of {me.count}:'
        f' {twin.name} and {host.name}. Give each its own --process_index, from'
        f' 0 to {me.count - 1}.'
    )
  return errors.UserError(
      f'Process {me} was told of {me.count} processes and process {host} of'
      f' {host.count}. Give all the same --process_count.'
  )


def _different(hosts: list[Host]) -> errors.UserError | None:
  """The error of hosts that are about to do different things."""
  groups: dict[str, list[Host]] = {}
  for host in sorted(hosts):
    groups.setdefault(host.text, []).append(host)
  if len(groups) < 2:
    return None
  said = [
      f'{group[0].hash} of host{"s" * (len(group) > 1)}'
      f' {", ".join(map(str, group))}'
      for group in groups.values()
  ]
  first, second, *_ = groups
  apart = [
      line[0] + line[1:].strip()
      for line in difflib.unified_diff(
          first.splitlines(), second.splitlines(), n=0, lineterm=''
      )
      if line[:2] not in ('--', '++', '@@')
  ]
  return errors.UserError(
      f'The hosts have different configurations: {" and ".join(said)}. The'
      f' first two differ in: {"; ".join(apart[:8])}. Give all hosts the same'
      ' flags and files.'
  )


class Watch:
  """What this process knows of the others, kept by threads of its own.

  Process 0 has a link to each of the others, which have one to it; what one
  has to say to all goes by process 0.
  """

  def __init__(
      self,
      index: int,
      names: dict[int, str],
      links: dict[int, _Link],
      heartbeat_timeout: float,
  ):
    self.name = names[index]
    self._index = index
    self._names = names
    self._links = links
    self._timeout = heartbeat_timeout
    self._parted = False
    self._over: set[int] = set()  # that said so
    self._gone: set[int] = set()  # whose link is closed
    self._ending = threading.Lock()
    # Of stopping together, see `stop_here`.
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

    Costs nothing until one is asked. Then each says how many calls it has
    made and waits in its next one, until process 0 knows the largest number:
    all stop one after that.

    Args:
      asked: whether this process was.
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
    """Says that this process is done, which is not to be lost."""
    self._tell_all(ended=0)
    self._parted = True  # not before: then a link may be closed at any time

  def fail(self, code: int, why: str) -> NoReturn:
    """Ends this process, which has said why, and all others, with the code."""
    self._end(code, f'host {self.name} ended: {why}', is_said=True)

  def _beat(self) -> None:
    while len(self._gone) < len(self._links):
      time.sleep(self._timeout / _BEATS)
      self._tell_all(beat=True)

  def _read(self, peer: int) -> None:
    """Takes what a peer sends, for as long as it lives."""
    why = ''
    while not (why or self._parted and peer in self._over):
      try:
        self._take(peer, self._links[peer].receive(self._timeout))
      except TimeoutError:
        why = f'nothing was heard of it for {self._timeout:g} s'
      except (OSError, ValueError):
        why = 'its process ended without a word'
    self._links[peer].close()
    self._gone.add(peer)
    if peer not in self._over:
      self._end(
          LOST,
          f'host {self._names[peer]} was lost: {why}. Start all hosts again: a'
          ' run goes on from its last checkpoint.',
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

  def _end(self, code: int, why: str, is_said: bool = False) -> NoReturn:
    with self._ending:  # for good: the first reason is the one that counts
      if not is_said:
        print(f'distillspec: {why}', file=sys.stderr)
      self._tell_all(ended=code, why=why)
      # Process 0 goes last: JAX's service goes with it.
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
