"""Rendezvous: the hosts of a run meet before JAX starts.

Process 0 listens at the coordinator's address until all others have connected,
compares their configurations, and tells all of them to start, or why not. The
connections stay open, see `liveness.py`.

JAX's own service, which listens there next, ends a process by SIGABRT when a
host is missing, and names none.
"""

from __future__ import annotations

from collections.abc import Iterable
import difflib
import socket
import time
from typing import NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.distributed import liveness

_GREETING_S = 10.0  # for a connected process to introduce itself
_RETRY_S = 0.3


class Host(NamedTuple):
  """How a process introduces itself.

  Attributes:
    index: of the process, from 0.
    count: number of processes, as it was told.
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


def meet(
    address: str, me: Host, start_timeout: float, heartbeat_timeout: float
) -> liveness.Watch:
  """Returns when all hosts have connected and have the same configuration.

  Args:
    address: 'HOST:PORT' of process 0.
    me: this process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a host counts as lost.

  Raises:
    UserError: the hosts have different configurations, or do not agree on who
      they are, or process 0 cannot listen.
    Failed: a host did not connect, or process 0 does not answer.
  """
  deadline = time.monotonic() + start_timeout
  if me.index == 0:
    port = int(address.rpartition(':')[2])
    links, hosts = _call(port, me, start_timeout, deadline)
    names = {host.index: str(host) for host in hosts}
  else:
    link, names = _answer(address, me, start_timeout, deadline)
    links = {0: link}
  return liveness.Watch(me.index, names, links, heartbeat_timeout)


def _call(
    port: int, me: Host, start_timeout: float, deadline: float
) -> tuple[dict[int, liveness.Link], list[Host]]:
  """Process 0: a link to each of the others, once all have connected."""
  came: dict[int, Host] = {0: me}
  links: dict[int, liveness.Link] = {}
  with _listen(port) as server:
    wrong: errors.UserError | errors.Failed | None = None
    while len(came) < me.count and wrong is None:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        link = liveness.Link(server.accept()[0])
      except TimeoutError:
        wrong = _missing(me.count, came.values(), start_timeout)
        break
      try:
        host = Host(**link.receive(_GREETING_S))
      except (OSError, TypeError, ValueError):
        link.close()  # not a process of this run
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
        f'Process 0 cannot listen at port {port}: {error.strerror}. Choose'
        ' another port in --coordinator, on all hosts.'
    ) from error


def _answer(
    address: str, me: Host, start_timeout: float, deadline: float
) -> tuple[liveness.Link, dict[int, str]]:
  """Another process: the link to process 0, and the names of all."""
  name, _, port = address.rpartition(':')
  while True:
    left = deadline - time.monotonic()
    link = None
    try:
      link = liveness.Link(
          socket.create_connection(
              (name.strip('[]'), int(port)), timeout=max(left, 0.001)
          )
      )
      link.send(**me._asdict())
      # Process 0 may have started when our time was nearly over.
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
  """The error of hosts with different configurations, if they are."""
  groups: dict[str, list[Host]] = {}
  for host in sorted(hosts):
    groups.setdefault(host.text, []).append(host)
  if len(groups) < 2:
    return None
  described = [
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
      f'The hosts have different configurations: {" and ".join(described)}. The'
      f' first two differ in: {"; ".join(apart[:8])}. Give all hosts the same'
      ' flags and files.'
  )
