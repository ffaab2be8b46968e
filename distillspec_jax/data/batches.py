"""Examples -> batches of fixed shape, in an order that a restart resumes.

The order of an epoch is a permutation drawn from (seed, epoch) alone. Batch
number n is therefore the same whoever asks for it and whenever, on any number
of hosts: each host builds its rows of the same global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import itertools
from typing import NamedTuple

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.data import tasks


class SplitStatistics(NamedTuple):
  """The contents of a split, and what is cut off or left out."""

  examples: int  # those that have label tokens
  empty: int  # examples left out because their label is EOS alone
  skipped_lines: int  # left out because they could not be read
  truncated_inputs: int  # longer than input_length
  truncated_labels: int  # longer than label_length; they lose their EOS
  mean_input_tokens: float  # lengths are before cutting, EOS included
  mean_label_tokens: float
  max_input_tokens: int
  max_label_tokens: int

  def describe(self) -> str:
    """One line for a person."""
    text = (
        f'{self.examples} examples, inputs of {self.mean_input_tokens:.0f}'
        f' tokens (at most {self.max_input_tokens}), labels of'
        f' {self.mean_label_tokens:.0f} (at most {self.max_label_tokens})'
    )
    for count, what in (
        (self.truncated_inputs, 'inputs cut'),
        (self.truncated_labels, 'labels cut, without EOS'),
        (self.empty, 'left out as empty'),
        (self.skipped_lines, 'lines skipped as unreadable'),
    ):
      if count:
        text += f'; {count} {what}'
    return text


def statistics(task: tasks.Task, split: str) -> SplitStatistics:
  """Counts and lengths over all examples of a split.

  Raises:
    UserError: the split is empty.
  """
  usable = _usable(task, split)
  inputs = np.array([len(example.inputs) for example in usable])
  labels = np.array([len(example.labels) for example in usable])
  return SplitStatistics(
      examples=len(usable),
      empty=len(task.examples(split)) - len(usable),
      skipped_lines=task.skipped_lines(split),
      truncated_inputs=int(np.sum(inputs > task.input_length)),
      truncated_labels=int(np.sum(labels > task.label_length)),
      mean_input_tokens=float(inputs.mean()),
      mean_label_tokens=float(labels.mean()),
      max_input_tokens=int(inputs.max()),
      max_label_tokens=int(labels.max()),
  )


def batches(
    task: tasks.Task,
    split: str,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool = True,
    pack: bool = False,
    start: int = 0,
    num_epochs: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[types.Batch]:
  """Batches of numpy arrays.

  Args:
    task: whose examples.
    split: of the task.
    batch_size: rows, over all hosts.
    seed: of the order.
    shuffle: False keeps the order of the source.
    pack: several examples per row, as many as fit.
    start: number of batches that were consumed already.
    num_epochs: None never ends; otherwise the last batch is filled up with
      empty rows.
    rows: which rows of each batch to return, in this order; None: all.

  Raises:
    UserError: nothing to batch, or a batch of no rows.
  """
  check.at_least(1, max_value=check.MAX_ROWS, batch_size=batch_size)
  # Reading here, not in the generator, raises errors before work starts.
  examples = [_cut(task, example) for example in _usable(task, split)]
  ordered = _rows(
      task, examples, seed, shuffle, pack, num_epochs, batch_size * start
  )
  rows = range(batch_size) if rows is None else rows
  return _batched(task, ordered, batch_size, rows)


Row = list[tuple[np.ndarray, np.ndarray]]


def _usable(task: tasks.Task, split: str) -> list[tasks.Example]:
  usable = [e for e in task.examples(split) if len(e.labels) > 1]
  if not usable:
    raise errors.UserError(
        f'No example of split {split!r} of task {task.name!r} has a label'
        ' token; its labels are all empty.'
    )
  return usable


def _cut(
    task: tasks.Task, example: tasks.Example
) -> tuple[np.ndarray, np.ndarray]:
  return (
      example.inputs[: task.input_length],
      example.labels[: task.label_length],
  )


def _rows(
    task, examples, seed, shuffle, pack, num_epochs, skip
) -> Iterator[Row]:
  """Rows of one or several examples, without the first `skip`."""
  epoch = 0
  # How many rows an epoch packs into is known only after packing it, so only
  # unpacked epochs can be jumped over.
  if not pack:
    epoch, skip = divmod(skip, len(examples))
  while num_epochs is None or epoch < num_epochs:
    order = np.arange(len(examples))
    if shuffle:
      order = np.random.default_rng((seed, epoch)).permutation(order)
    epoch += 1
    if not pack:
      for number in order[skip:]:
        yield [examples[number]]
      skip = 0
      continue
    for row in _packed(task, (examples[number] for number in order)):
      if skip:
        skip -= 1
      else:
        yield row


def _packed(task, examples) -> Iterator[Row]:
  """Rows filled in order, each until the next example no longer fits."""
  row: Row = []
  inputs = labels = 0
  for example in examples:
    if row and (
        inputs + len(example[0]) > task.input_length
        or labels + len(example[1]) > task.label_length
    ):
      yield row
      row, inputs, labels = [], 0, 0
    row.append(example)
    inputs += len(example[0])
    labels += len(example[1])
  if row:
    yield row


def _batched(
    task, ordered: Iterator[Row], batch_size: int, rows: Sequence[int]
) -> Iterator[types.Batch]:
  while group := list(itertools.islice(ordered, batch_size)):
    group += [[]] * (batch_size - len(group))
    yield _batch(task, [group[row] for row in rows])


def _batch(task: tasks.Task, rows: list[Row]) -> types.Batch:
  inputs = np.zeros((len(rows), task.input_length), np.int32)
  labels = np.zeros((len(rows), task.label_length), np.int32)
  input_segments, segments = np.zeros_like(inputs), np.zeros_like(labels)
  for i, row in enumerate(rows):
    at_input = at_label = 0
    for segment, (source, label) in enumerate(row, start=1):
      span = slice(at_input, at_input + len(source))
      inputs[i, span], input_segments[i, span] = source, segment
      span = slice(at_label, at_label + len(label))
      labels[i, span], segments[i, span] = label, segment
      at_input += len(source)
      at_label += len(label)
  return types.Batch(
      inputs=inputs,
      input_segments=input_segments,
      labels=labels,
      segments=segments,
      mask=segments > 0,
  )
