"""Hosts that call each other over loopback, a thread for each."""

from concurrent import futures
import socket

from distillspec_jax.core import errors
from distillspec_jax.distributed import rendezvous


def free_port():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    return taken.getsockname()[1]


def host(index, count, text='a = 1\nb = 2', **changes):
  known = rendezvous.Host(index, count, f'h{index}', str(hash(text)), text)
  return known._replace(**changes)


def meet(*hosts, seconds=30.0):
  """What each host gets of the roll call: its watch, or its error."""
  address = f'127.0.0.1:{free_port()}'

  def one(me):
    try:
      return rendezvous.meet(address, me, seconds, 30.0)
    except (errors.UserError, errors.Failed) as error:
      return error

  with futures.ThreadPoolExecutor(len(hosts)) as pool:
    return list(pool.map(one, hosts))
