"""Locks: one process at a time writes into a run's folder or a file.

A lock is a small file that says who holds it, with a counter that the holder
raises every few seconds. It needs no more of a file system than a bucket that
is mounted has. A holder that was killed is recognised: on the same machine its
process is gone, elsewhere its counter stands still. Of several hosts of one run
the first holds the lock for all.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from typing import Any

from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts

FILE = 'lock.json'
_BEAT_S = 10.0
_SILENCE_S = 3.5 * _BEAT_S  # after which a holder elsewhere counts as gone
_SETTLE_S = 0.2  # in which two that take over the same lock see each other
_MACHINE = ('host', 'boot', 'namespace')


@contextlib.contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[Lock]:
  """Holds the lock in the file `path`, which is removed afterwards.

  Raises:
    UserError: another process holds it.
  """
  lock = Lock(pathlib.Path(path).absolute())
  if hosts.is_first():
    lock.acquire()
  try:
    yield lock
  finally:
    lock.release()


def check_free(folder: str | os.PathLike[str]) -> None:
  """Raises UserError where another process holds the lock of a run's folder."""
  lock = Lock(pathlib.Path(folder).absolute() / FILE)
  holder = lock.read()
  if hosts.is_first() and holder is not None and lock.is_alive(holder):
    raise lock.taken(holder)


class Lock:
  """The lock in a file; see `held`."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    # What is locked: the run's folder, or the file FILE of FILE.lock.
    self._what = path.parent if path.name == FILE else path.with_suffix('')
    self._is_held = False
    self._released = threading.Event()
    self._mine: dict[str, Any] = {
        **_machine(),
        'pid': os.getpid(),
        'started': _started(os.getpid()),
        'since': datetime.datetime.now(datetime.UTC).strftime('%F %T UTC'),
        'token': secrets.token_hex(8),
        'beats': 0,
    }

  def acquire(self) -> None:
    """Raises UserError where another process holds it."""
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._path.touch(exist_ok=False)
    except FileExistsError:
      holder = self.read()
      if holder is not None and self.is_alive(holder):
        raise self.taken(holder) from None
      self._replace()
      time.sleep(_SETTLE_S)
      holder = self.read() or {}
      if holder.get('token') != self._mine['token']:
        raise self.taken(holder) from None
    else:
      try:
        self._replace()
      except OSError:  # a full disk
        self._path.unlink()
        raise
    self._is_held = True
    self._beating = threading.Thread(target=self._beat, daemon=True)
    self._beating.start()

  def check(self) -> None:
    """Raises Failed where the lock, or the folder it is in, is gone."""
    if not self._is_held:
      return
    holder = self.read()
    if holder is None:
      raise errors.Failed(
          f'{self._path} is gone: {self._what} was removed while it was written'
          ' to. Nothing more is written.'
      )
    if holder.get('token', self._mine['token']) != self._mine['token']:
      raise errors.Failed(
          f'{self._what} was taken over by process'
          f' {holder.get("pid")} on {holder.get("host")}. Nothing more is'
          ' written.'
      )

  def release(self) -> None:
    self._released.set()
    if self._is_held:
      self._is_held = False
      self._beating.join()  # or it might write the lock again
      if (self.read() or {}).get('token') == self._mine['token']:
        self._path.unlink(missing_ok=True)

  def read(self) -> dict[str, Any] | None:
    """Who holds it: {} if that cannot be read (yet), None if nobody does."""
    try:
      holder = json.loads(self._path.read_text())
    except (FileNotFoundError, NotADirectoryError):
      return None
    except ValueError:
      return {}
    return holder if isinstance(holder, dict) else {}

  def taken(self, holder: dict[str, Any]) -> errors.UserError:
    """The error for a lock that another process holds."""
    return errors.UserError(
        f'{self._what} is in use by process {holder.get("pid")} on'
        f' {holder.get("host")}, since {holder.get("since")}. Wait for it to'
        f' end, or name another. ({self._path} says so.)'
    )

  def is_alive(self, holder: dict[str, Any]) -> bool:
    """Whether the holder still runs; waits for a sign of one elsewhere."""
    if all(holder.get(name) == self._mine[name] for name in _MACHINE):
      return _started(holder.get('pid', 0)) == holder.get('started')
    print(
        f'{self._path} was left by process {holder.get("pid")} on'
        f' {holder.get("host")}; waiting {_SILENCE_S:.0f} s for a sign of it.',
        file=sys.stderr,
        flush=True,
    )
    end = time.monotonic() + _SILENCE_S
    while time.monotonic() < end:
      time.sleep(_SILENCE_S / 20)
      if self.read() != holder:
        return self.read() is not None
    return False

  def _beat(self) -> None:
    while not self._released.wait(_BEAT_S):
      with contextlib.suppress(OSError):  # a full disk, or a moment's failure
        if (self.read() or {}).get('token') != self._mine['token']:
          return  # `check` says so
        self._mine['beats'] += 1
        self._replace()

  def _replace(self) -> None:
    temporary = self._path.with_name(f'.{self._path.name}.{os.getpid()}')
    try:
      temporary.write_text(json.dumps(self._mine))
      temporary.replace(self._path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise


def _machine() -> dict[str, str | None]:
  """What tells machines, and containers with processes of their own, apart."""

  def read(find):
    try:
      return find().strip()
    except OSError:  # not Linux
      return None

  boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
  return {
      'host': socket.gethostname(),
      'boot': read(boot.read_text),
      'namespace': read(lambda: os.readlink('/proc/self/ns/pid')),
  }


def _started(pid: int) -> str | None:
  """When the process was started, None if there is none."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except OSError:
    return None if pathlib.Path('/proc/self').exists() else _answers(pid)
  state, *rest = fields.split()
  return None if state in 'ZX' else rest[18]


def _answers(pid: int) -> str | None:
  """Likewise where there is no /proc, which tells no more than that it runs."""
  try:
    os.kill(pid, 0)
  except OSError:
    return None
  return 'running'
