"""A run's checkpoints: the whole training state, saved as training continues.

A thin layer over Orbax's CheckpointManager: a step that was not written
completely does not exist. PRNG keys are stored as arrays and wrapped again.
"""

from __future__ import annotations

import logging
import os
import pathlib
import secrets
import tempfile
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

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
    raise errors.UserError(
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


class Store:
  """The checkpoints in a folder, one per step.

  Use it as a context manager: leaving it waits until everything is written.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
    logging.getLogger('absl').setLevel(logging.ERROR)
    folder = pathlib.Path(folder).absolute()
    self._manager = ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        ),
    )

  def __enter__(self) -> Store:
    return self

  def __exit__(self, *exception: Any) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Starts writing `state` (a pytree of arrays) and `extra` (JSON).

    A step that exists already is left as it is.
    """
    if step in self._manager.all_steps():
      return
    self._manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(_to_data, state)),
            extra=ocp.args.JsonSave(extra),
        ),
    )

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state and extra of a step.

    Args:
      step: one that was saved.
      like: tree of `ShapeDtypeStruct` whose shardings the state gets.
    """
    restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(_like_data, like)),
            extra=ocp.args.JsonRestore(),
        ),
    )
    state = jax.tree.map(_from_data, restored.state, like)
    return state, restored.extra


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
