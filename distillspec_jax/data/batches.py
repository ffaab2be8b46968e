"""Examples -> batches of fixed shape, in an order that a restart resumes.

The order of an epoch is a permutation drawn from (seed, epoch) alone, and what
is packed into one row does not change. Batch number n is therefore the same
whoever asks for it and whenever, on any number of hosts: each host reads and
builds its rows of the same global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import types
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import reading
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
  examples = examples_lib.of(task, split)
  lengths = examples.lengths(slice(None))
  limits = task.input_length, task.label_length
  truncated = (lengths > limits).sum(0)
  mean, most = lengths.mean(0, dtype=np.float64), lengths.max(0)
  return SplitStatistics(
      examples=len(examples),
      empty=examples.empty,
      skipped_lines=examples.skipped_lines,
      truncated_inputs=int(truncated[0]),
      truncated_labels=int(truncated[1]),
      mean_input_tokens=float(mean[0]),
      mean_label_tokens=float(mean[1]),
      max_input_tokens=int(most[0]),
      max_label_tokens=int(most[1]),
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
  examples = examples_lib.of(task, split)
  limits = task.input_length, task.label_length
  packed = reading.Rows(examples, limits, pack)
  order = reading.Order(len(packed), seed, shuffle, num_epochs)

  def build(numbers: list[int | None]) -> types.Batch:
    found = [[] if n is None else packed.numbers(n) for n in numbers]
    flat = iter(examples.many([number for row in found for number in row]))
    return _batch(limits, [[next(flat) for _ in row] for row in found])

  rows = range(batch_size) if rows is None else rows
  every = reading.Batches(order, batch_size, rows, build)
  return reading.ahead(every, start, examples.threads)


def _batch(
    limits: tuple[int, int], rows: list[list[examples_lib.Example]]
) -> types.Batch:
  inputs, labels = (np.zeros((len(rows), size), np.int32) for size in limits)
  input_segments, segments = np.zeros_like(inputs), np.zeros_like(labels)
  for i, row in enumerate(rows):
    at_input = at_label = 0
    for segment, (source, label) in enumerate(row, start=1):
      source, label = source[: limits[0]], label[: limits[1]]
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
