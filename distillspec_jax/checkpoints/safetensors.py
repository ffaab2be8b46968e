"""Files of the format safetensors: a header in JSON, then raw arrays.

Read box by box without mapping the file into memory, so that no more of it is
held than is asked for, and from wherever `epath` reaches, which the package
`safetensors` does not do; written tensor by tensor. Format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

_DTYPES = {
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F16': np.dtype(np.float16),
    'F32': np.dtype(np.float32),
    'F64': np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # bytes
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def read(path: epath.Path) -> dict[str, Tensor]:
  """Name -> tensor of the file; only the header is read.

  Raises:
    UserError: the file is cut off, or its header is not a valid one, or does
      not account for every byte exactly once.
  """
  size = path.stat().length
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
      raise errors.UserError(
          f'{path} is no whole safetensors file: its header would be {length}'
          f' bytes long, and the file has {size}. Copy or download it again.'
      )
    text = file.read(length)
  try:
    header = json.loads(text)
    header.pop('__metadata__', None)
    entries = {name: _entry(values) for name, values in header.items()}
  except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError,
  ) as error:  # fmt: skip
    raise errors.UserError(
        f'{path} has no valid safetensors header ({error!r}). Copy or download'
        ' it again.'
    ) from error
  start = 8 + length
  tensors = {}
  for name, (dtype, shape, begin, end) in entries.items():
    if dtype not in _DTYPES:
      raise errors.UserError(
          f'Tensor {name} in {path} is of type {dtype}; only'
          f' {", ".join(_DTYPES)} are read. Save the model in one of those.'
      )
    wanted = math.prod(shape) * _DTYPES[dtype].itemsize
    if begin < 0 or end - begin != wanted or min(shape, default=0) < 0:
      raise errors.UserError(
          f'Tensor {name} in {path} is {shape} of {dtype}, {wanted} bytes, but'
          f' its header gives it bytes {begin} to {end}. Copy or download the'
          ' file again.'
      )
    if start + end > size:
      raise errors.UserError(
          f'{path} is cut off: tensor {name} ends at byte {start + end}, the'
          f' file at {size}. Copy or download it again.'
      )
    tensors[name] = _tensor(path, start + begin, shape, _DTYPES[dtype])
  _check_covered(path, entries, size - start)
  return tensors


def _entry(values: Any) -> tuple[str, tuple[int, ...], int, int]:
  """Dtype, shape, first byte and byte after the last, as a header says."""
  shape = tuple(values['shape'])
  begin, end = values['data_offsets']
  if not all(type(n) is int for n in (*shape, begin, end)):
    raise TypeError('shapes and offsets must be whole numbers')
  return str(values['dtype']), shape, begin, end


def _check_covered(
    path: epath.Path, entries: Mapping[str, tuple], nbytes: int
) -> None:
  """Refuses tensors that overlap, and bytes that belong to none."""
  spans = sorted(
      (begin, end, name) for name, (*_, begin, end) in entries.items()
  )
  before = 0
  for begin, end, name in spans:
    if begin != before:
      raise errors.UserError(
          f'Tensor {name} in {path} begins at byte {begin} of the data, but the'
          f' one before it ends at {before}. Copy or download the file again.'
      )
    before = end
  if before != nbytes:
    raise errors.UserError(
        f'{path} has {nbytes} bytes of data, of which its tensors take'
        f' {before}. Copy or download it again.'
    )


def _tensor(
    path: epath.Path, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> Tensor:
  row = math.prod(shape[1:])  # elements

  def read(index: Index) -> np.ndarray:
    if not shape:
      index, rows = (slice(0, 1),), 1
    else:
      rows = index[0].stop - index[0].start
    block = _empty((rows, *shape[1:]), dtype)
    with path.open('rb') as file:
      file.seek(start + index[0].start * row * dtype.itemsize)
      _fill(file, block.reshape(-1).view(np.uint8), path)
    if not shape:
      return block[0]
    part = block[(slice(None), *index[1:])]
    return part if part.size == block.size else part.copy()

  return Tensor(shape, dtype, read)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array at an aligned address, which JAX may take over without a copy."""
  nbytes = math.prod(shape) * dtype.itemsize
  raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + nbytes].view(dtype).reshape(shape)


def _fill(file: Any, buffer: np.ndarray, path: epath.Path) -> None:
  view = memoryview(buffer)
  while view:
    count = file.readinto(view)
    if not count:
      raise errors.UserError(
          f'{path} ended while it was read; has it been changed meanwhile?'
      )
    view = view[count:]


def write(path: epath.Path, tensors: Mapping[str, Tensor]) -> None:
  """Writes a file; one tensor is in memory at a time."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, tensor in tensors.items():
    begin, end = end, end + tensor.nbytes
    header[name] = {
        'dtype': _NAMES[np.dtype(tensor.dtype)],
        'shape': list(tensor.shape),
        'data_offsets': [begin, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # arrays start at multiples of 8
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little'))
    file.write(text)
    for tensor in tensors.values():
      array = np.ascontiguousarray(tensor.all()).reshape(-1)
      file.write(array.view(np.uint8))
