"""The processes of a run on several hosts: found, started, stopped together.

`main.py` starts them before anything touches a device; everything after that is
one program that all of them run. Only process 0 prints and writes files, but
for checkpoints, which all write.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import socket
import time
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.distributed import liveness
from distillspec_jax.distributed import rendezvous

# An error of JAX may be that of a lost host, which is known a little later.
_SECOND_THOUGHT_S = 2.0

# The first process may have work when the others are done; if it dies
# meanwhile they are told.
_FOR_THE_LAST_S = 24 * 3600

_watch: liveness.Watch | None = None


class Place(NamedTuple):
  """Where a process stands among those of a run.

  Attributes:
    coordinator: 'HOST:PORT' of process 0.
    count: of processes.
    index: of this one.
    local_devices: numbers of the devices that are its own; None: all it sees.
  """

  coordinator: str
  count: int
  index: int
  local_devices: Sequence[int] | None = None


def find(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    start_timeout: float = 300,
) -> Place | None:
  """The place of this process; None where it is the only one.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, and else as JAX finds it: on TPU slices, under Slurm and Open
  MPI, and in an indexed Job of Kubernetes.

  Args:
    coordinator: 'HOST:PORT' of process 0.
    process_count: of the run; 1 looks no further.
    process_index: from 0.
    start_timeout: seconds that looking may take.

  Raises:
    UserError: some are given and others are not, or they make no sense.
  """
  coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
  count = _number('process_count', process_count, 'JAX_NUM_PROCESSES')
  index = _number('process_index', process_index, 'JAX_PROCESS_ID')
  if count == 1:
    return None
  given = {
      '--coordinator': coordinator,
      '--process_count': count,
      '--process_index': index,
  }
  local_devices = None
  if None in given.values():
    coordinator, count, index, local_devices = _detected(
        coordinator, count, index, start_timeout
    )
    if count == 1:
      return None
    if None in (coordinator, count, index):
      there = [
          f'{name}={value}'
          for name, value in given.items()
          if value is not None
      ]
      if not there:
        return None
      absent = [name for name, value in given.items() if value is None]
      raise errors.UserError(
          f'{" and ".join(there)} {"is" if len(there) == 1 else "are"} given,'
          f' but {" and ".join(absent)} {"is" if len(absent) == 1 else "are"}'
          ' not; give all three. This is no TPU slice and no job of Slurm or'
          ' Open MPI, where they would be known.'
      )
  if not 0 <= index < count:
    raise errors.UserError(
        f'--process_index is {index} and --process_count {count}; the index'
        ' must be from 0 to the count less 1.'
    )
  name, _, port = coordinator.rpartition(':')
  if not name or not port.isdigit() or not 0 < int(port) < 2**16:
    raise errors.UserError(
        f'--coordinator is {coordinator!r}; it must be HOST:PORT, of process'
        ' 0, such as 10.0.0.2:8476.'
    )
  return Place(coordinator, count, index, local_devices)


def _number(name: str, value: int | None, variable: str) -> int | None:
  if value is None and variable in os.environ:
    try:
      value = int(os.environ[variable])
    except ValueError as error:
      raise errors.UserError(
          f'{variable} is {os.environ[variable]!r}; it must be a number, as'
          f' --{name}.'
      ) from error
  return value


def _detected(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    start_timeout: float,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
  """What is known, and what JAX knows of the cluster that this runs in."""
  # JAX tells nobody but `initialize`, which is too late for a roll call.
  from jax._src import cloud_tpu_init
  from jax._src import clusters

  in_pod = 'KUBERNETES_SERVICE_HOST' in os.environ
  if (
      in_pod
      and 'JOB_COMPLETION_INDEX' not in os.environ
      and not cloud_tpu_init.running_in_cloud_tpu_vm
  ):
    return coordinator, count, index, None  # no more than a container
  try:
    return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, count, index, None, None, int(start_timeout)
    )
  except Exception as error:  # of many kinds: network, rights, no such name
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'Which of how many hosts this is could not be found out: {reason}.'
        ' Give --coordinator, --process_count and --process_index, or'
        ' --process_count=1 for this host alone.'
    ) from error


def start(
    place: Place, start_timeout: float = 300, heartbeat_timeout: float = 100
) -> None:
  """Waits for all hosts and starts JAX on them; once, and before any device.

  Args:
    place: of this process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a host is lost, and all
      others end with exit code `liveness.LOST`.

  Raises:
    UserError: the hosts have different configurations, or the like.
    Failed: a host did not come, or the coordinator does not answer.
  """
  global _watch
  for name, value in (
      ('start_timeout', start_timeout),
      ('heartbeat_timeout', heartbeat_timeout),
  ):
    if value < 1:
      raise errors.UserError(f'--{name} is {value:g}; it must be at least 1.')
  began = time.monotonic()
  current = configuration.current()
  me = rendezvous.Host(
      place.index, place.count, socket.gethostname(), current.hash, current.text
  )
  _watch = rendezvous.meet(
      place.coordinator, me, start_timeout, heartbeat_timeout
  )
  liveness.delay_aborts()
  # SIGTERM is ours, see `stop_here`: JAX's service would swallow it.
  jax.config.update('jax_enable_preemption_service', False)
  left = start_timeout - (time.monotonic() - began)
  jax.distributed.initialize(
      place.coordinator,
      place.count,
      place.index,
      place.local_devices,
      cluster_detection_method='deactivate',
      initialization_timeout=max(int(left), 30),
      # A silent host is to be found by us, who say which one it is.
      heartbeat_timeout_seconds=2 * int(heartbeat_timeout) + 10,
      shutdown_timeout_seconds=_FOR_THE_LAST_S,
  )


def is_first() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns when all processes are here; `name` says where that is."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def stop_here(asked: bool) -> bool:
  """Whether to stop now: at the same call on all hosts, once one is asked."""
  return asked if _watch is None else _watch.stop_here(asked)


def prefix() -> str:
  """'host 1 (NAME): ' before what one of several says, else ''."""
  return '' if _watch is None else f'host {_watch.name}: '


def await_reason() -> None:
  """Where an error may be that of a lost host: gives way to saying so."""
  if _watch is not None:
    time.sleep(_SECOND_THOUGHT_S)


def leave(code: int, why: str = '') -> None:
  """The end of this process; where it failed, of all, with its exit code.

  Args:
    code: 0, or of what went wrong. If all were asked to stop, they have.
    why: for the others to say.
  """
  global _watch
  if _watch is None:
    return
  if code and not _watch.stopped:
    _watch.fail(code, why)
  _watch.part()
  jax.distributed.shutdown()
  _watch = None
