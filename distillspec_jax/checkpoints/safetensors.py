"""Files of the format safetensors: a header in JSON, then raw arrays.

Boxes are read without mapping the file into memory, so that no more of it is
held than is asked for, and from wherever `epath` reaches; the package
`safetensors` does neither. Files are written tensor by tensor. Format:
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

from distillspec_jax.checkpoints import json_files
from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors
from distillspec_jax.core import sources

_DTYPES = {
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F16': np.dtype(np.float16),
    'F32': np.dtype(np.float32),
    'F64': np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # bytes
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


def read(path: epath.Path) -> dict[str, Tensor]:
  """Name -> tensor of the file; only the header is read.

  Raises:
    UserError: the file is cut off, or its header is not a valid one, or does
      not account for every byte exactly once.
  """
  sources.check_regular(path)
  size = path.stat().length
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise errors.UserError(
          f'{path} is no complete safetensors file: its header would be'
          f' {length} bytes long, and the file has {size}. Copy or download it'
          ' again.'
      )
    text = file.read(length)
  with json_files.parsing(f'The header of {path}'):
    header = json.loads(text)
    header.pop('__metadata__', None)
    entries = [_entry(name, values) for name, values in header.items()]
  start, last = 8 + length, 0
  tensors = {}
  # In the order of the data, where each must begin at the end of the last:
  # an overlap, or bytes of no tensor, would mean that the header is wrong.
  for begin, end, name, dtype, shape in sorted(entries):
    if dtype not in _DTYPES:
      raise errors.UserError(
          f'Tensor {name} in {path} is of type {dtype}; only'
          f' {", ".join(_DTYPES)} are read. Save the model in one of those.'
      )
    nbytes = math.prod(shape) * _DTYPES[dtype].itemsize
    problem = None
    if begin < 0 or end - begin != nbytes or min(shape, default=0) < 0:
      problem = (
          f'is {shape} of {dtype}, {nbytes} bytes, but its header gives it'
          f' bytes {begin} to {end}'
      )
    elif start + end > size:
      problem = f'ends at byte {start + end}, but the file is cut off at {size}'
    elif begin != last:
      problem = (
          f'begins at byte {begin} of the data, but the one before it ends at'
          f' {last}'
      )
    if problem:
      raise errors.UserError(
          f'Tensor {name} in {path} {problem}. Copy or download the file again.'
      )
    last = end
    tensors[name] = _tensor(path, start + begin, shape, _DTYPES[dtype])
  if start + last != size:
    raise errors.UserError(
        f'{path} has {size - start} bytes of data, but its tensors take {last}.'
        ' Copy or download it again.'
    )
  return tensors


def _entry(
    name: str, values: Any
) -> tuple[int, int, str, str, tuple[int, ...]]:
  """First byte, byte after the last, name, dtype and shape of a tensor."""
  shape, (begin, end) = tuple(values['shape']), values['data_offsets']
  if not all(type(n) is int for n in (*shape, begin, end)):
    raise TypeError('shapes and offsets must be whole numbers')
  return begin, end, name, str(values['dtype']), shape


def _tensor(
    path: epath.Path, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> Tensor:
  row = math.prod(shape[1:]) * dtype.itemsize  # bytes

  def read(index: Index) -> np.ndarray:
    # Rows of the first axis are contiguous: one seek and one read for all of
    # them, from which the box of the other axes is cut. A scalar is one row.
    rows, *others = index or (slice(0, 1),)
    block = _empty((rows.stop - rows.start, *shape[1:]), dtype)
    with path.open('rb') as file:
      file.seek(start + rows.start * row)
      _fill(file, block.reshape(-1).view(np.uint8), path)
    if not shape:
      return block.reshape(())
    part = block[(slice(None), *others)]
    # A view would keep all of the block alive.
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
          f'{path} ended while it was being read; was it changed meanwhile?'
      )
    view = view[count:]


def write(path: epath.Path, tensors: Mapping[str, Tensor]) -> None:
  """Writes a file; one tensor is in memory at a time."""
  # transformers refuses files that do not name a framework.
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
  text += b' ' * (-len(text) % 8)  # the data start at a multiple of 8
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little'))
    file.write(text)
    for tensor in tensors.values():
      array = np.ascontiguousarray(tensor.all()).reshape(-1)
      file.write(array.view(np.uint8))
