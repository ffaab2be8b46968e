"""Rows of any lengths -> batches of few shapes.

Inputs of similar length go together, padded to a power of two: a short one does
not pay for a long one, and few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Batches whose inputs are sorted by length together: more means less padding,
# and a longer wait for the first answer.
_WINDOW = 16


class Batch(NamedTuple):
  """Inputs that are decoded together."""

  numbers: list[int]
  width: int  # tokens that each is padded to


def plan(
    lengths: Sequence[int], batch_size: int, start: int = 0
) -> Iterator[Batch]:
  """Batches of inputs of similar length, window by window.

  What is in a batch does not depend on `start`: batches that hold nothing but
  inputs before it are left out, the others are whole.

  Args:
    lengths: tokens of each input.
    batch_size: inputs in a batch; the last of a width may have fewer.
    start: inputs before it are done.
  """
  widths = [width(length) for length in lengths]
  # A width of few inputs is not worth a compiled program of its own.
  wider: dict[int, int] = {}
  waiting: list[int] = []
  count = 0
  known = sorted(set(widths))
  for size in known:
    waiting.append(size)
    count += widths.count(size)
    if count >= batch_size or size == known[-1]:
      wider |= dict.fromkeys(waiting, size)
      waiting, count = [], 0
  window = _WINDOW * batch_size
  for begin in range(0, len(lengths), window):
    numbers = range(begin, min(begin + window, len(lengths)))
    for size in sorted({wider[widths[i]] for i in numbers}):
      same = [i for i in numbers if wider[widths[i]] == size]
      for at in range(0, len(same), batch_size):
        batch = Batch(same[at : at + batch_size], size)
        if batch.numbers[-1] >= start:
          yield batch


def width(length: int) -> int:
  """The next power of two: similar inputs share a compiled program."""
  return max(8, 1 << (length - 1).bit_length()) if length else 0


def pad(
    rows: Sequence[Sequence[int]], size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and segments int32[B, S] of rows of any lengths.

  Args:
    rows: tokens of each row.
    size: S; default: the `width` of the longest row.
  """
  if size is None:
    size = width(max(len(row) for row in rows))
  tokens = np.zeros((len(rows), size), np.int32)
  segments = np.zeros_like(tokens)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
    segments[i, : len(row)] = 1
  return tokens, segments
