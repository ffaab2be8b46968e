"""Which examples are measured: the first of a split, in its own order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import tasks
from distillspec_jax.distributed import hosts


def final_split(task: tasks.Task, split: str | None) -> str:
  """The split to measure on: the given one, or 'test', or else 'validation'.

  Training chooses the step that it keeps on 'validation': what is measured
  there is a little too good, which is printed.
  """
  if split is not None:
    check.text(split=split)
    return split
  if 'test' in task.splits:
    return 'test'
  if hosts.is_first():
    kind = type(task)
    is_ours = getattr(tasks, kind.__name__, None) is kind
    module = 'tasks' if is_ours else kind.__module__.rpartition('.')[2]
    setting = f'{module}.{kind.__name__}.test'
    print(
        f'distillspec: task {task.name!r} has no split test, so it is measured'
        ' on validation, whose first examples also choose the step that'
        f' training keeps. Give it one, as in --gin.{setting}=FILE.',
        file=sys.stderr,
    )
  return 'validation'


def first(
    task: tasks.Task, split: str, examples: int, batch_size: int
) -> list[types.Batch]:
  """The first examples of a split; unused rows of the last batch are empty.

  Args:
    task: whose examples.
    split: of the task.
    examples: how many; all there are if the split has fewer.
    batch_size: rows a batch.

  Raises:
    UserError: a number below 1, no such split, or nothing in it.
  """
  check.at_least(1, examples=examples)
  check.at_least(1, max_value=check.MAX_ROWS, batch_size=batch_size)
  batches: list[types.Batch] = []
  remaining = examples
  for batch in batches_lib.batches(
      task,
      split,
      min(batch_size, examples),
      seed=0,
      shuffle=False,
      num_epochs=1,
  ):
    batches.append(_emptied(batch, remaining))
    remaining -= batch.inputs.shape[0]
    if remaining <= 0:
      break
  return batches


def repeated(
    task: tasks.Task, split: str, examples: int, batch_size: int, number: int
) -> list[types.Batch]:
  """`number` full batches of the first examples of a split.

  After the last example comes the first again.

  Args:
    task: whose examples.
    split: of the task.
    examples: how many different ones; all there are if the split has fewer.
    batch_size: rows a batch, none of them empty.
    number: of batches.

  Raises:
    UserError: as in `first`.
  """
  check.at_least(1, max_value=check.MAX_ROWS, batch_size=batch_size)
  (every,) = first(task, split, examples, batch_size=max(examples, 1))[:1]
  real = np.flatnonzero(real_rows(every))
  rows = real[np.arange(number * batch_size) % len(real)]
  return [
      jax.tree.map(lambda x, at=at: np.asarray(x)[at], every)
      for at in rows.reshape(number, batch_size)
  ]


def fingerprint(batches: Iterable[types.Batch]) -> str:
  """Identifies the inputs and their order, whatever the batch size."""
  digest = hashlib.sha256()
  for batch in batches:
    for row in np.flatnonzero(real_rows(batch)):
      used = np.asarray(batch.input_segments[row]) > 0
      tokens = np.asarray(batch.inputs[row], np.int32)[used]
      digest.update(np.int32(len(tokens)).tobytes() + tokens.tobytes())
  return digest.hexdigest()[:12]


def with_keys(
    batches: Iterable[types.Batch], seed: int
) -> Iterator[tuple[types.Batch, jax.Array]]:
  """Each batch with a key[B]; row i of all batches has stream (seed, i)."""
  start = 0
  for batch in batches:
    numbers = start + jnp.arange(batch.inputs.shape[0])
    start += len(numbers)
    yield batch, randomness.row_keys(jax.random.key(seed), numbers)


def real_rows(batch: types.Batch) -> np.ndarray:
  """bool[B]: rows that hold an example, not only padding."""
  inputs = np.any(np.asarray(batch.input_segments) > 0, axis=1)
  return inputs | np.any(np.asarray(batch.segments) > 0, axis=1)


def _emptied(batch: types.Batch, used: int) -> types.Batch:
  """The batch with only its first `used` rows; the others become padding."""
  rows = batch.inputs.shape[0]
  if used >= rows:
    return batch
  keep = np.arange(rows)[:, None] < used
  return jax.tree.map(lambda x: np.where(keep, x, np.zeros_like(x)), batch)
