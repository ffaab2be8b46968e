"""Examples -> rows -> batches of rows, each found by its number alone.

A row is one example, or with packing as many as fit. Which examples share a row
is decided by their lengths alone, once and for all epochs. The order of rows in
an epoch is a permutation drawn from (seed, epoch); of many rows it is computed
for one row at a time. Nothing is repeated when a run resumes.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator, Sequence
import functools
import sys
from typing import Any

import numpy as np

from distillspec_jax.data import examples as examples_lib

# Positions that are packed at a time; a bound of memory, without effect.
_WINDOW = 2**16
# Rows up to which an epoch's permutation is listed (8 MB): grain's, which is
# computed number by number, takes longer the fewer there are.
_LISTED = 2**20


class Rows:
  """The rows of a split: which examples are in each.

  Args:
    examples: of the split.
    limits: most tokens of inputs and of labels in a row; what is longer is cut
      to them.
    pack: several examples in a row. Those that share one lie far apart in the
      source, so that rows of a sorted one are not all alike.
  """

  def __init__(
      self,
      examples: examples_lib.Examples,
      limits: tuple[int, int],
      pack: bool,
  ):
    self._size = len(examples)
    self._stride = examples_lib.stride(self._size)
    self._starts = None
    if pack:
      self._starts = _starts(examples, limits, self._at)

  def __len__(self) -> int:
    return self._size if self._starts is None else len(self._starts) - 1

  def _at(self, positions: np.ndarray) -> np.ndarray:
    return positions * self._stride % self._size

  def numbers(self, row: int) -> list[int]:
    """The examples of a row."""
    if self._starts is None:
      return [row]
    span = range(self._starts[row], self._starts[row + 1])
    return [position * self._stride % self._size for position in span]


def _starts(
    examples: examples_lib.Examples,
    limits: tuple[int, int],
    at: Callable[[np.ndarray], np.ndarray],
) -> array.array:
  """The position at which each row starts, and the end.

  Rows are filled in order, each until the next example no longer fits.
  """
  size, starts = len(examples), array.array('q')
  # A row has at most as many examples as it has label tokens.
  window = max(_WINDOW, 2 * limits[1])
  first = 0
  while first < size:
    positions = np.arange(first, min(first + window, size))
    lengths = np.minimum(examples.lengths(at(positions)), limits)
    sums = np.concatenate([np.zeros((1, 2), np.int64), lengths.cumsum(0)])
    ends = [
        np.searchsorted(side, side[:-1] + limit, 'right') - 1
        for side, limit in zip(sums.T, limits)
    ]
    following = np.minimum(*ends).tolist()
    at_row, last = 0, len(positions)
    while at_row < last:
      if following[at_row] == last and first + last < size:
        break  # more may fit, which the next window shows
      starts.append(first + at_row)
      at_row = following[at_row]
    first += at_row
  starts.append(size)
  return starts


class Order(Sequence[int]):
  """Row after row, for all epochs, computed for one place at a time.

  Args:
    rows: in an epoch.
    seed: of the permutations.
    shuffle: False: every epoch has the rows as they are numbered.
    num_epochs: None never ends.
  """

  def __init__(
      self, rows: int, seed: int, shuffle: bool, num_epochs: int | None
  ):
    self._rows, self._seed, self._shuffle = rows, seed, shuffle
    self._size = sys.maxsize if num_epochs is None else rows * num_epochs
    self._shuffled = None
    if shuffle and rows > _LISTED:
      import grain

      # grain draws epoch e from seed + e; seeds 0 and 1 must not be neighbours.
      mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
      numbers = grain.MapDataset.range(rows).shuffle(seed=mixed)
      self._shuffled = numbers.repeat(None)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, place: Any) -> Any:
    if self._shuffled is not None:
      return self._shuffled[place]
    epoch, row = divmod(place, self._rows)
    if not self._shuffle:
      return row
    return int(_permutation(self._rows, self._seed, epoch)[row])


@functools.lru_cache(maxsize=8)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(rows)


class Batches:
  """The batches of a sequence of rows: batch n is `build` of its rows.

  Args:
    order: row after row.
    batch_size: rows of a batch.
    rows: which of them are built, in this order.
    build: numbers of rows -> batch; None for a row after the last.
  """

  def __init__(
      self,
      order: Sequence[int],
      batch_size: int,
      rows: Sequence[int],
      build: Callable[[list[int | None]], Any],
  ):
    self._order, self._size = order, batch_size
    self._rows, self._build = [int(row) for row in rows], build

  def __len__(self) -> int:
    return -(-len(self._order) // self._size)

  def __getitem__(self, number: int) -> Any:
    places = [number * self._size + row for row in self._rows]
    total = len(self._order)
    return self._build([self._order[p] if p < total else None for p in places])


def ahead(batches: Batches, start: int, threads: int) -> Iterator[Any]:
  """The batches from number `start`, read ahead by threads if there are any."""
  if not threads:
    return (batches[number] for number in range(start, len(batches)))
  import grain

  options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=2 * threads
  )
  dataset = grain.MapDataset.source(batches)[start:]
  return iter(dataset.to_iter_dataset(options))
