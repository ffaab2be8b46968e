"""The checksums of a checkpoint's arrays: made when saved, compared when read.

A record says of each array its dtype, shape and checksum (`core.checksums`):
{'params/decoder/...': ['float32', [8, 4], 2166136261]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import checksums
from distillspec_jax.core import errors

Record = Mapping[str, Sequence[Any]]


def record(tree: Any) -> dict[str, list[Any]]:
  """The record of a tree of arrays; all processes get that of the whole."""
  flat = tensors_lib.flatten(tree)
  if all(getattr(x, 'is_fully_addressable', True) for x in flat.values()):
    sums = [_sum(x) for x in flat.values()]
  else:
    sums = tensors_lib.add_up([_sum(x) for x in flat.values()])
  return {
      path: [str(x.dtype), list(x.shape), total]
      for (path, x), total in zip(flat.items(), sums)
  }


def _sum(array: Any) -> int:
  """This process's share in the checksum of an array."""
  if not isinstance(array, jax.Array):
    return checksums.of_box(np.asarray(array))
  total = 0
  for shard in array.addressable_shards:
    if shard.replica_id == 0:
      start = [part.start or 0 for part in shard.index]
      total += checksums.of_box(np.asarray(shard.data), start)
  return total % 2**32


def expected(
    tensors: Mapping[str, tensors_lib.Tensor], record: Record, where: Any
) -> dict[str, int]:
  """Path -> checksum of the tensors, which are those of the record.

  Raises:
    UserError: one is missing, or of another shape or dtype.
  """
  for path, (dtype, shape, _) in record.items():
    tensor = tensors.get(path)
    if tensor is None or (str(tensor.dtype), list(tensor.shape)) != (
        dtype,
        list(shape),
    ):
      raise errors.UserError(
          f'{path} in {where} is missing or damaged; it must be'
          f' {dtype}{list(shape)}. Copy it again.'
      )
  return {path: total for path, (_, _, total) in record.items()}


def verify(
    tensors: Mapping[str, tensors_lib.Tensor], expected: Mapping[str, int]
) -> None:
  """Reads the tensors one by one.

  Raises:
    UserError: one is not as it was written.
  """
  tensors_lib.compare_sums(
      {path: checksums.of_box(tensors[path].all()) for path in expected},
      expected,
  )
