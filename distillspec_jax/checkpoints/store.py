"""A run's checkpoints: the whole training state, saved as training continues.

Orbax's CheckpointManager writes them: a step that was not written completely
does not exist. They are read as models are, array by array, each compared with
its checksum. PRNG keys are stored as arrays and wrapped again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import sys
import tempfile
from typing import Any, NamedTuple

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from distillspec_jax.checkpoints import array_checksums
from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import checksums
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.distributed import hosts


def check_writable(run: str | os.PathLike[str]) -> pathlib.Path:
  """Creates the folder of a run, and returns it.

  Raises:
    UserError: nothing can be written to it.
  """
  folder = sources.run_folder(run)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(b'0')
  except OSError as error:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    raise (errors.Failed if is_full else errors.UserError)(
        f'Nothing can be written to the folder {folder}: {error.strerror}.'
        ' Name another folder, free some space, or change its permissions.'
    ) from error
  return folder


def check_shared(folder: str | os.PathLike[str]) -> None:
  """Raises UserError if not all processes see the same folder."""
  if jax.process_count() == 1:
    return
  # The first process creates a file under a name that nobody else can have
  # left there, and the others look for it.
  number = multihost_utils.broadcast_one_to_all(
      np.int32(secrets.randbelow(2**31))
  )
  mark = pathlib.Path(folder) / f'.seen_by_all_{int(number)}'
  if hosts.is_first():
    mark.touch()
  hosts.wait_for_all('a mark is in the folder')
  if not mark.exists():
    raise errors.UserError(
        f'{folder} is not the folder that process 0 has under this name. Name'
        ' one that all hosts share: a network disk, or a bucket mounted on all.'
    )
  hosts.wait_for_all('the mark was seen')
  if hosts.is_first():
    mark.unlink()


@functools.cache
def _quieten() -> None:
  """Leaves it to us to say that Orbax or TensorStore failed to write."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  # Other writes that were under way print a traceback each when they fail.
  hook = sys.excepthook
  sys.excepthook = lambda kind, value, trace: (
      None if 'loop is closed' in str(value) else hook(kind, value, trace)
  )


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Within it, an error of the file system that Orbax raises is `Failed`."""
  _quieten()
  try:
    yield
  except (OSError, ValueError) as error:
    # Without the source lines that TensorStore appends in brackets.
    reason = ' '.join(str(error).split()).split(' [')[0]
    is_full = re.search('No space left|[Qq]uota exceeded', reason)
    if isinstance(error, errors.UserError) or not (
        is_full or re.match('[A-Z_]+: ', reason)  # a status of TensorStore
    ):
      raise
    raise errors.Failed(
        f'{folder} cannot be written to:'
        f' {is_full[0] + " on device" if is_full else reason}. Free some space,'
        ' or change its permissions; the same command then resumes from the'
        ' last checkpoint.'
    ) from error


class Record(NamedTuple):
  """What is known of a checkpoint without reading its arrays.

  Attributes:
    arrays: see `array_checksums`.
    extra: as it was given to `save`.
  """

  arrays: dict[str, Any]
  extra: dict[str, Any]


def read_record(folder: epath.Path) -> Record:
  """The record of the checkpoint in CHECKPOINTS/STEP.

  Raises:
    UserError: it is missing or damaged.
  """
  path = folder / 'extra' / 'metadata'
  remedy = 'copy the checkpoint again'
  try:
    values = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise errors.UserError(f'{path} is missing; {remedy}.') from error
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(
        f'{path} is damaged ({error!r}); {remedy}.'
    ) from error
  return Record(**checksums.unsealed(values, path, remedy))


def steps(folder: str | os.PathLike[str]) -> list[int]:
  """The steps in a folder of checkpoints, whole or not, in order."""
  folder = epath.Path(folder)
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


class Store:
  """The checkpoints in a folder, one per step.

  Use it as a context manager: leaving it waits until everything is written.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
    self._folder = pathlib.Path(folder).absolute()
    with writing(self._folder):
      self._manager = ocp.CheckpointManager(
          self._folder,
          options=ocp.CheckpointManagerOptions(
              max_to_keep=keep, create=True, enable_async_checkpointing=True
          ),
      )

  def __enter__(self) -> Store:
    return self

  def __exit__(self, kind: Any, *exception: Any) -> None:
    with contextlib.ExitStack() as stack:
      if kind is not None:  # the first error is the one to report
        stack.enter_context(contextlib.suppress(Exception))
      self.wait()
    self._manager.close()

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when everything is on disk."""
    with writing(self._folder):
      self._manager.wait_until_finished()

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Starts writing `state` (a pytree of arrays) and `extra` (JSON).

    A step that exists already is left as it is.

    Raises:
      Failed: it cannot be written.
    """
    if step in self._manager.all_steps():
      return
    data = jax.tree.map(_to_data, state)
    record = Record(array_checksums.record(data), extra)
    with writing(self._folder):
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(data),
              extra=ocp.args.JsonSave(checksums.sealed(record._asdict())),
          ),
      )

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state and extra of a step.

    Args:
      step: one that was saved.
      like: tree of `ShapeDtypeStruct` whose shardings the state gets.

    Raises:
      UserError: the checkpoint is damaged, or of other arrays.
    """
    folder = epath.Path(self._folder) / str(step)
    arrays, extra = read_record(folder)
    wanted = tensors_lib.flatten(jax.tree.map(_like_data, like))
    read = orbax_arrays.read(folder / 'state')
    expected = array_checksums.expected(read, arrays, folder)
    wrong = parameters.mismatches(read, {k: x.shape for k, x in wanted.items()})
    if wrong:
      raise errors.UserError(
          f'{folder} is of another model or optimizer: {wrong}.'
      )
    shardings = {path: x.sharding for path, x in wanted.items()}
    placed = tensors_lib.place(
        read, shardings, expected=expected, allow_nonfinite=True
    )
    state = jax.tree.unflatten(
        jax.tree.structure(like), [placed[path] for path in wanted]
    )
    return jax.tree.map(_from_data, state, like), extra

  def restore_last(
      self, like: Any, check: Callable[[int, dict[str, Any]], None]
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Step, state and extra of the newest checkpoint that is whole.

    Newer ones, which are damaged, are reported and renamed to STEP.damaged.

    Args:
      like: as in `restore`.
      check: gets step and extra before the state is read; raises UserError
        where the run must not be resumed.

    Returns:
      None if there is no checkpoint at all.

    Raises:
      UserError: there are checkpoints, but all of them are damaged; or the
        newest whole one does not fit.
    """
    damaged: dict[int, str] = {}
    for step in reversed(steps(self._folder)):
      folder = epath.Path(self._folder) / str(step)
      try:
        record = read_record(folder)
      except errors.UserError as error:
        damaged[step] = str(error)
        continue
      check(step, record.extra)
      self._check_arrays(folder, record, like)
      try:
        state, extra = self.restore(step, like)
      except errors.UserError as error:
        damaged[step] = str(error)
        continue
      self._set_aside(damaged, step)
      return step, state, extra
    if damaged:
      step, reason = max(damaged.items())
      raise errors.UserError(
          f'No checkpoint in {self._folder} is whole. {step}: {reason} Copy one'
          f' of {", ".join(map(str, sorted(damaged)))} back, or remove the'
          ' folder to start anew.'
      )
    return None

  def _check_arrays(self, folder: epath.Path, record: Record, like: Any):
    """Refuses a checkpoint that is whole, but of another model or optimizer."""
    wanted = tensors_lib.flatten(jax.tree.map(_like_data, like))
    wrong = parameters.mismatches(
        {
            path: jax.ShapeDtypeStruct(shape, dtype)
            for path, (dtype, shape, _) in record.arrays.items()
        },
        {path: x.shape for path, x in wanted.items()},
    )
    if record.arrays and wrong:
      raise errors.UserError(
          f'{folder} is of another model or optimizer: {wrong}. Set them back,'
          ' or name another folder.'
      )

  def _set_aside(self, damaged: dict[int, str], step: int) -> None:
    for number, reason in damaged.items():
      if hosts.is_first():
        folder = self._folder / str(number)
        aside = folder.with_name(f'{number}.damaged')
        if aside.is_dir():
          shutil.rmtree(aside)
        folder.rename(aside)
        print(
            f'{folder} is damaged and is now called {aside.name}; the run'
            f' resumes from step {step}. {reason}',
            file=sys.stderr,
            flush=True,
        )
    if damaged:
      hosts.wait_for_all('damaged checkpoints are set aside')
      self._manager.reload()


def _is_key(array: Any) -> bool:
  return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _to_data(array: Any) -> Any:
  return jax.random.key_data(array) if _is_key(array) else array


def _like_data(like: Any) -> Any:
  if not _is_key(like):
    return like
  data = jax.eval_shape(jax.random.key_data, like)
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=like.sharding)


def _from_data(array: Any, like: Any) -> Any:
  if not _is_key(like):
    return array
  return jax.random.wrap_key_data(array)
