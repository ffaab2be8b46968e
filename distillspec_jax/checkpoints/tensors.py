"""Tensors that are read when and where they are needed, whatever the format.

A `Tensor` knows its shape and dtype and how to read any box of itself.
Transposing and slicing are views: nothing is read twice, and no host reads what
it does not hold.

  place     tensors -> arrays on devices
  compare   tensors of two checkpoints, one pair at a time
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import math
import threading
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import ml_dtypes  # gives numpy bfloat16
import numpy as np

from distillspec_jax.core import checksums
from distillspec_jax.core import errors

Index = tuple[slice, ...]

# Reading overlaps with placing; more threads than this gain nothing.
_THREADS = 8
_MAX_LISTED = 20  # items that a message spells out


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One array of a checkpoint, not read yet.

  Attributes:
    shape: of the whole.
    dtype: on disk.
    read: box -> numpy array of that box; slices have start and stop, step 1.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[Index], np.ndarray]

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * np.dtype(self.dtype).itemsize

  def all(self) -> np.ndarray:
    """The whole array."""
    return self.read(tuple(slice(0, n) for n in self.shape))

  @property
  def T(self) -> Tensor:
    """Axes reversed."""
    return Tensor(
        self.shape[::-1], self.dtype, lambda index: self.read(index[::-1]).T
    )

  def at(self, axis: int, number: int) -> Tensor:
    """Entry `number` of an axis, which is gone."""

    def read(index: Index) -> np.ndarray:
      one = slice(number, number + 1)
      box = (*index[:axis], one, *index[axis:])
      return np.squeeze(self.read(box), axis)

    shape = self.shape[:axis] + self.shape[axis + 1 :]
    return Tensor(shape, self.dtype, read)

  def take(self, axis: int, numbers: np.ndarray) -> Tensor:
    """Entries int[n] of an axis, in that order."""

    def read(index: Index) -> np.ndarray:
      wanted = numbers[index[axis]]
      first = int(wanted.min())
      near = slice(first, int(wanted.max()) + 1)
      box = self.read((*index[:axis], near, *index[axis + 1 :]))
      return np.take(box, wanted - first, axis)

    shape = (*self.shape[:axis], len(numbers), *self.shape[axis + 1 :])
    return Tensor(shape, self.dtype, read)

  def astype(self, dtype: Any) -> Tensor:
    """In another dtype; what does not fit becomes infinite."""
    dtype = np.dtype(dtype)
    if dtype == self.dtype:
      return self

    def read(index: Index) -> np.ndarray:
      with np.errstate(over='ignore'):  # the infinities are reported later
        return self.read(index).astype(dtype)

    return Tensor(self.shape, dtype, read)


def from_array(array: Any) -> Tensor:
  """A tensor that is in memory already, numpy's or JAX's."""
  return Tensor(
      tuple(array.shape),
      np.dtype(array.dtype),
      lambda index: np.asarray(array[index]),
  )


def flatten(tree: Any) -> dict[str, Any]:
  """Nested dicts -> path with slashes -> leaf."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in leaves
  }


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def place(
    tensors: Mapping[str, Tensor],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    *,
    dtype: Any = None,
    transform: Callable[[str, jax.Array], dict[str, jax.Array]] | None = None,
    expected: Mapping[str, int] | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, jax.Array]:
  """The tensors on devices, each device reading what it holds.

  Besides what stays there, the host holds no more bytes at a time than the
  largest tensor has; several smaller ones are read in parallel.

  Args:
    tensors: what to read.
    shardings: path -> sharding; None puts all on the first device.
    dtype: what to hold them in; None: as on disk.
    transform: path and array -> arrays to hold instead, e.g. quantized ones;
      called as soon as an array is there.
    expected: path -> checksum, of those that have one. Where several processes
      read, all find the same, also if only one could not read its part.
    allow_nonfinite: lets NaN and infinite values through.

  Raises:
    UserError: there are NaN or infinite values; all such tensors are named. Or
      a tensor cannot be read, or its checksum is another.
  """
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  budget = _Budget(max((t.nbytes for t in tensors.values()), default=0))
  nonfinite: dict[str, int] = {}
  expected = dict(expected or {})
  sums = dict.fromkeys(expected, 0)

  def place_one(path: str) -> dict[str, jax.Array]:
    tensor = tensors[path]
    sharding = first if shardings is None else shardings[path]
    boxes: dict[Any, np.ndarray] = {}  # replicas are read once
    owners: dict[Any, int] = {}
    if path in expected:
      indices = sharding.devices_indices_map(tensor.shape)
      for device, index in indices.items():
        owners.setdefault(_key(index, tensor.shape), device.process_index)

    def read(index: Index) -> np.ndarray:
      key = _key(index, tensor.shape)
      if key not in boxes:
        boxes[key] = tensor.read(tuple(slice(*part) for part in key))
        if owners.get(key) == jax.process_index():
          start = [part[0] for part in key]
          sums[path] += checksums.of_box(boxes[key], start)
        count = count_nonfinite(boxes[key])
        if count:
          nonfinite[path] = nonfinite.get(path, 0) + count
      return boxes[key]

    with budget.hold(tensor.nbytes):
      array = jax.make_array_from_callback(tensor.shape, sharding, read)
      array.block_until_ready()
      boxes.clear()  # within the budget: the host's copies count until here
      # One by one, so that not all are held in both dtypes.
      if dtype is not None:
        array = array.astype(dtype)
      if transform is None:
        return {path: array}
      return jax.block_until_ready(transform(path, array))

  # The largest first; one that starts last would be waited for alone.
  order = sorted(tensors, key=lambda path: -tensors[path].nbytes)
  failure = None
  try:
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      placed = dict(zip(order, pool.map(place_one, order)))
  except errors.UserError as error:
    failure = error  # raised after the others know
  if expected and not all(
      shardings is None or shardings[path].is_fully_addressable
      for path in expected
  ):
    # What a process could not read is not in the sum.
    sums = dict(zip(expected, add_up([sums[path] for path in expected])))
  if failure is not None:
    raise failure
  compare_sums(sums, expected)
  if nonfinite and not allow_nonfinite:
    raise errors.UserError(nonfinite_message(nonfinite))
  return {k: v for path in tensors for k, v in placed[path].items()}


def _key(index: Index, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
  # JAX leaves out the ends of axes that are not sharded.
  return tuple(part.indices(n)[:2] for part, n in zip(index, shape))


def add_up(sums: Sequence[int]) -> list[int]:
  """Checksums over all processes, of the shares that each of them has."""
  shares = np.array([total % 2**32 for total in sums], np.uint32)
  gathered = multihost_utils.process_allgather(shares)
  return gathered.sum(axis=0, dtype=np.uint32).tolist()


def compare_sums(sums: Mapping[str, int], expected: Mapping[str, int]) -> None:
  """Raises UserError for tensors whose checksum is not the expected one."""
  wrong = [path for path in expected if sums[path] % 2**32 != expected[path]]
  if wrong:
    raise errors.UserError(
        f'{listed(wrong)} {"is" if len(wrong) == 1 else "are"} damaged: the'
        ' checksum is another than when it was written. Copy the checkpoint'
        ' again, or take another.'
    )


def listed(items: Sequence[str], separator: str = ', ') -> str:
  """The items for a message, and how many more there are than it has room."""
  text = separator.join(items[:_MAX_LISTED])
  if len(items) > _MAX_LISTED:
    text += f'{separator}and {len(items) - _MAX_LISTED} more'
  return text


def nonfinite_message(counts: Mapping[str, int]) -> str:
  """The error for tensors with NaN or infinite values, path -> how many."""
  named = [f'{path} ({count})' for path, count in sorted(counts.items())]
  return (
      f'NaN or infinite values are in {listed(named)}. The checkpoint is'
      ' damaged or its training diverged; take another, or allow them with'
      ' allow_nonfinite.'
  )


class Difference(NamedTuple):
  """How one tensor differs between two checkpoints."""

  largest: float  # absolute, 0 where all bytes agree
  dtypes: tuple[np.dtype, np.dtype]
  nonfinite: int  # values that are NaN or infinite in the second


def compare(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> Iterator[tuple[str, Difference]]:
  """Path and difference of each pair, one pair in memory at a time.

  Both must have the same paths and shapes, see `mismatches`.
  """
  for path in a:
    x, y = a[path].all(), b[path].all()
    dtypes, nonfinite = (x.dtype, y.dtype), count_nonfinite(y)
    largest = 0.0
    if x.dtype != y.dtype or not np.array_equal(_bits(x), _bits(y)):
      x, y = x.astype(np.float64), y.astype(np.float64)
      with np.errstate(invalid='ignore'):
        apart = np.where(x == y, 0.0, np.abs(x - y))
      # NaN in one and a number in the other is as far apart as can be.
      apart = np.where(np.isnan(x) & np.isnan(y), 0.0, apart)
      apart = np.where(np.isnan(apart), np.inf, apart)
      largest = float(apart.max(initial=0.0))
    yield path, Difference(largest, dtypes, nonfinite)


def count_nonfinite(array: np.ndarray) -> int:
  """Number of NaN and infinite values."""
  if array.dtype.itemsize == 2 and array.dtype.kind in 'fV':
    # By the exponent's bits: 16-bit floats have no fast arithmetic on hosts.
    exponent = 0x7F80 if array.dtype == ml_dtypes.bfloat16 else 0x7C00
    return int(np.count_nonzero((_bits(array) & exponent) == exponent))
  if array.dtype.kind != 'f':
    return 0
  return array.size - int(np.count_nonzero(np.isfinite(array)))


def _bits(array: np.ndarray) -> np.ndarray:
  return array.view(f'u{array.dtype.itemsize}')


class _Budget:
  """Bytes that may be held at once; a request waits until there is room."""

  def __init__(self, limit: int):
    self._free = limit
    self._changed = threading.Condition()
    self._turn = threading.Lock()  # else small requests would starve large ones

  @contextlib.contextmanager
  def hold(self, nbytes: int) -> Iterator[None]:
    with self._turn, self._changed:
      self._changed.wait_for(lambda: self._free >= nbytes)
      self._free -= nbytes
    try:
      yield
    finally:
      with self._changed:
        self._free += nbytes
        self._changed.notify_all()
