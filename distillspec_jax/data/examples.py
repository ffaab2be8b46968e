"""Tokenised examples of a split, read by number: held in memory, or mixed.

Examples whose label has no token but EOS teach nothing; they are left out where
examples are collected, and counted.
"""

from __future__ import annotations

import abc
import array
from collections.abc import Iterable, Sequence
import math
from typing import Any, NamedTuple
import zlib

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.data import vocabulary_kinds


class Example(NamedTuple):
  """A tokenised example."""

  inputs: np.ndarray  # int32[n], ends with EOS unless decoder-only
  labels: np.ndarray  # int32[m], ends with EOS

  @property
  def is_empty(self) -> bool:
    """Whether its label is EOS alone, or nothing."""
    labels = self.labels
    no_token = len(labels) == 1 and labels[0] == vocabulary_kinds.EOS
    return no_token or not len(labels)


class Examples(Sequence[Example]):
  """The examples of a split, by number; none of them has an empty label.

  Attributes:
    empty: examples that were left out because their label is empty.
    skipped_lines: lines that could not be read and were left out.
    fingerprint: of the contents and their order.
    threads: how many read ahead; 0 where nothing is read.
  """

  empty: int = 0
  skipped_lines: int = 0
  fingerprint: str = ''
  threads: int = 0

  def many(self, numbers: Sequence[int]) -> Sequence[Example]:
    """The examples of these numbers."""
    return [self[number] for number in numbers]

  @abc.abstractmethod
  def lengths(self, numbers: Any) -> np.ndarray:
    """int32[k, 2] tokens of inputs and labels, before they are cut.

    Args:
      numbers: int64[k] or a slice: which examples.
    """


class InMemory(Examples):
  """Examples in one array of tokens."""

  def __init__(self) -> None:
    self._tokens = array.array('i')
    self._lengths = array.array('i')
    self._ends = array.array('q', [0])
    self._crc = 0

  @property
  def fingerprint(self) -> str:  # type: ignore[override]
    return f'crc {self._crc:08x}'

  @property
  def num_tokens(self) -> int:
    return len(self._tokens)

  def add(self, example: Example | None) -> None:
    """Takes an example, or None for a line that was skipped."""
    if example is None:
      self.skipped_lines += 1
    elif example.is_empty:
      self.empty += 1
    else:
      for tokens in example:
        data = np.ascontiguousarray(tokens, np.int32).tobytes()
        self._tokens.frombytes(data)
        self._lengths.append(len(tokens))
        self._crc = zlib.crc32(data, self._crc)
      self._ends.append(len(self._tokens))

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, number: Any) -> Any:
    if isinstance(number, slice):
      return [self[i] for i in range(*number.indices(len(self)))]
    number = range(len(self))[number]
    start, end = self._ends[number], self._ends[number + 1]
    tokens = np.frombuffer(memoryview(self._tokens)[start:end], np.int32)
    split = self._lengths[2 * number]
    return Example(tokens[:split], tokens[split:])

  def lengths(self, numbers: Any) -> np.ndarray:
    return np.frombuffer(self._lengths, np.int32).reshape(-1, 2)[numbers]


class Mixed(Examples):
  """Examples of several tasks, in each epoch as many of each as its rate says.

  An epoch has all examples of all tasks; those of which the rates ask for more
  come several times. Part i of the epoch, int(N w_i) examples, is one task's;
  the numbers 0, 1, 2, ... step through the epoch in strides of about N times
  the golden ratio, so that any run of them has the tasks by their rates.
  """

  def __init__(self, parts: Sequence[Examples], rates: Sequence[float]):
    self._parts = parts
    total = sum(rates)
    size = max(len(p) * total / rate for p, rate in zip(parts, rates))
    shares = [max(math.ceil(size * rate / total), 1) for rate in rates]
    self._starts = np.cumsum([0, *shares])
    self._sizes = np.array([len(part) for part in parts])
    self._stride = stride(len(self))
    self.empty = sum(part.empty for part in parts)
    self.skipped_lines = sum(part.skipped_lines for part in parts)
    prints = [f'{rate:g} {p.fingerprint}' for p, rate in zip(parts, rates)]
    self.fingerprint = f'crc {zlib.crc32(" ".join(prints).encode()):08x}'

  def __len__(self) -> int:
    return int(self._starts[-1])

  def _place(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of each number, and the number in it."""
    at = numbers * self._stride % len(self)
    part = np.searchsorted(self._starts, at, 'right') - 1
    return part, (at - self._starts[part]) % self._sizes[part]

  def __getitem__(self, number: Any) -> Any:
    if isinstance(number, slice):
      return [self[i] for i in range(*number.indices(len(self)))]
    part, place = self._place(np.array([range(len(self))[number]]))
    return self._parts[int(part[0])][int(place[0])]

  def lengths(self, numbers: Any) -> np.ndarray:
    if isinstance(numbers, slice):
      numbers = np.arange(*numbers.indices(len(self)))
    part, place = self._place(numbers)
    found = np.empty((len(part), 2), np.int32)
    for i, each in enumerate(self._parts):
      found[part == i] = each.lengths(place[part == i])
    return found


def stride(size: int) -> int:
  """A step near `size` over the golden ratio that visits all numbers once."""
  step = max(int(size * 0.6180339887498949), 1)
  while math.gcd(step, size) != 1:
    step += 1
  return step


def collected(
    stream: Iterable[Example | None], max_tokens: float = math.inf
) -> InMemory | None:
  """The examples of a stream, in memory; None where they are more tokens."""
  examples = InMemory()
  for example in stream:
    examples.add(example)
    if examples.num_tokens > max_tokens:
      return None
  return examples


def of(task: Any, split: str) -> Examples:
  """The examples of a task's split; of a task of one's own, too.

  Raises:
    UserError: there is none that has a label token.
  """
  given = task.examples(split)
  if not isinstance(given, Examples):
    given, listed = InMemory(), given
    for example in listed:
      given.add(Example(*example))
    given.skipped_lines = task.skipped_lines(split)
  if not len(given):
    raise errors.UserError(
        f'No example of split {split!r} of task {task.name!r} has a label'
        ' token; its labels are all empty.'
    )
  return given
