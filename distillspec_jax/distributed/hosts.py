"""The processes of a run on several hosts: detected, started, stopped together.

The command line starts them before anything touches a device; everything after
that is one program that all of them run. Only process 0 prints and writes
files, except checkpoints, which all write.
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

# An error of JAX may be due to a lost host, which is known a little later.
_SECOND_THOUGHT_S = 2.0

# Process 0 may still be working when the others are done; if it dies in the
# meantime they are told.
_SHUTDOWN_S = 24 * 3600

_watch: liveness.Watch | None = None


class Place(NamedTuple):
  """The place of a process among those of a run.

  Attributes:
    coordinator: 'HOST:PORT' of process 0.
    count: number of processes.
    index: of this one.
    local_devices: ids of its own devices; None: all it sees.
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
  JAX_PROCESS_ID, or else detected as JAX does: on TPU slices, under Slurm and
  Open MPI, and in an indexed Job of Kubernetes.

  Args:
    coordinator: 'HOST:PORT' of process 0.
    process_count: number of processes of the run; 1 detects nothing.
    process_index: from 0.
    start_timeout: seconds that detection may take.

  Raises:
    UserError: some are given and others are not, or they are out of range.
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
          ' not; give all three. They are detected only on TPU slices and under'
          ' Slurm or Open MPI.'
      )
  if not 0 <= index < count:
    raise errors.UserError(
        f'--process_index is {index} and --process_count {count}; the index'
        ' must lie in [0, count).'
    )
  name, _, port = coordinator.rpartition(':')
  if not name or not port.isdigit() or not 0 < int(port) < 2**16:
    raise errors.UserError(
        f'--coordinator is {coordinator!r}; it must be HOST:PORT of process'
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
  """The arguments, completed by what JAX detects of the cluster."""
  # JAX has no public function for this but `initialize`, which is too late for
  # the rendezvous.
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
        f'The number of hosts and the index of this one were not detected:'
        f' {reason}.'
        ' Give --coordinator, --process_count and --process_index, or'
        ' --process_count=1 for this host alone.'
    ) from error


def start(
    place: Place, start_timeout: float = 300, heartbeat_timeout: float = 100
) -> None:
  """Waits for all hosts and starts JAX on them; once, before any device.

  Args:
    place: of this process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a host is lost, and all
      others end with exit code `liveness.LOST`.

  Raises:
    UserError: the hosts have different configurations, or claim the same index.
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
  # SIGTERM is handled in `stop_here`; JAX's service would swallow it.
  jax.config.update('jax_enable_preemption_service', False)
  left = start_timeout - (time.monotonic() - began)
  jax.distributed.initialize(
      place.coordinator,
      place.count,
      place.index,
      place.local_devices,
      cluster_detection_method='deactivate',
      initialization_timeout=max(int(left), 30),
      # Our own check comes first, because it names the silent host.
      heartbeat_timeout_seconds=2 * int(heartbeat_timeout) + 10,
      shutdown_timeout_seconds=_SHUTDOWN_S,
  )


def is_first() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns when all processes have called it; `name` identifies the call."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def stop_here(asked: bool) -> bool:
  """Whether to stop now: at the same call on all hosts, once one was asked."""
  return asked if _watch is None else _watch.stop_here(asked)


def prefix() -> str:
  """'host 1 (NAME): ' for messages of one of several hosts, else ''."""
  return '' if _watch is None else f'host {_watch.name}: '


def await_reason() -> None:
  """Waits a moment where an error may be due to a lost host, to report that."""
  if _watch is not None:
    time.sleep(_SECOND_THOUGHT_S)


def leave(code: int, why: str = '') -> None:
  """Ends this process for the others; if it failed, ends them with its code.

  Args:
    code: exit code. If all were asked to stop, all stop by themselves.
    why: the reason that the others print.
  """
  global _watch
  if _watch is None:
    return
  if code and not _watch.stopped:
    _watch.fail(code, why)
  _watch.part()
  jax.distributed.shutdown()
  _watch = None
