"""Batches sharded over the mesh: each process builds its devices' rows.

The global batch is the same array on any number of hosts, and so is whatever is
computed from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import tasks
from distillspec_jax.distributed import mesh as mesh_lib


def batches(
    mesh: jax.sharding.Mesh,
    task: tasks.Task,
    split: str,
    batch_size: int,
    **order: Any,
) -> Iterator[types.Batch]:
  """Batches of global arrays, their rows sharded over the mesh.

  Args:
    mesh: of all devices of all processes.
    task: whose examples.
    split: of the task.
    batch_size: rows, over all processes.
    **order: seed, shuffle, pack, start and num_epochs of
      `data.batches.batches`.

  Raises:
    UserError: nothing to batch, fewer examples than processes, or rows that
      cannot be split evenly over the mesh.
  """
  mesh_lib.check_batch(mesh, batch_size)
  sharding = mesh_lib.rows(mesh)
  spans = [
      index[0].indices(batch_size)[:2]
      for index in sharding.addressable_devices_indices_map(
          (batch_size,)
      ).values()
  ]
  rows = np.unique(np.concatenate([np.arange(*span) for span in spans]))
  local = batches_lib.batches(task, split, batch_size, rows=rows, **order)
  hosts = jax.process_count()
  if hosts > 1:
    examples = len(examples_lib.of(task, split))
    if examples < hosts:
      raise errors.UserError(
          f'Split {split!r} of task {task.name!r} has {examples} examples for'
          f' {hosts} processes, each of which needs one. Use fewer hosts.'
      )

  def put(array: np.ndarray) -> jax.Array:
    # Devices ask for their part of the global batch; `array` has only the rows
    # of this process, of which `rows` gives the global numbers.
    def read(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(batch_size)
      at = np.searchsorted(rows, start)
      return array[at : at + stop - start]

    shape = (batch_size, *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, read)

  return (jax.tree.map(put, batch) for batch in local)
