"""Flags for hosts and devices, and what they set up."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import os
import sys

from distillspec_jax.core import cache
from distillspec_jax.distributed import hosts


def add_mesh_flag(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
      '--mesh',
      metavar='DATA,FSDP,TENSOR',
      help='shards models and batches over all devices: sizes of the mesh axes,'
      ' DATA may be -1 for the remaining devices; default: one device',
  )


def add_host_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group(
      'several hosts',
      'Start the same command on each host. On TPU slices and under Slurm and'
      ' Open MPI the hosts find each other; elsewhere give the first three.',
  )
  group.add_argument(
      '--coordinator',
      metavar='HOST:PORT',
      help='address of process 0, which the others can reach; default:'
      ' JAX_COORDINATOR_ADDRESS',
  )
  group.add_argument(
      '--process_count',
      type=int,
      metavar='N',
      help='number of processes, one per host; 1 is this host alone; default:'
      ' JAX_NUM_PROCESSES',
  )
  group.add_argument(
      '--process_index',
      type=int,
      metavar='I',
      help='index of this process, from 0; default: JAX_PROCESS_ID',
  )
  group.add_argument(
      '--start_timeout',
      type=float,
      default=300.0,
      metavar='SECONDS',
      help='how long to wait for the other hosts (%(default)g)',
  )
  group.add_argument(
      '--heartbeat_timeout',
      type=float,
      default=100.0,
      metavar='SECONDS',
      help='a host that is silent for this long is lost, and all others end'
      ' with exit code 69; one whose process dies is noticed at once'
      ' (%(default)g)',
  )


@contextlib.contextmanager
def using(options: argparse.Namespace) -> Iterator[None]:
  """Within it, hosts and devices are used as the flags say.

  Call it after the configuration is read, which hosts compare, and before
  anything touches a device.
  """
  cache_programs()
  if hasattr(options, 'coordinator'):
    place = hosts.find(
        options.coordinator,
        options.process_count,
        options.process_index,
        options.start_timeout,
    )
    if place is not None:
      hosts.start(place, options.start_timeout, options.heartbeat_timeout)
  if getattr(options, 'mesh', None) is None:
    yield
    return
  from distillspec_jax.distributed import mesh

  with mesh.using(options.mesh):
    yield


def cache_programs() -> None:
  """Keeps compiled programs on disk, so that a second run starts faster."""
  import jax

  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    folder = cache.folder('xla')
    if folder is None:
      print(
          'distillspec: compiled programs are not kept, because there is no'
          ' home folder to write to; XDG_CACHE_HOME names another.',
          file=sys.stderr,
      )
      return
    jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
