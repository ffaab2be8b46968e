"""t5x's native layout: a msgpack file `checkpoint`, large arrays beside it.

The file is a tree {version, optimizer: {target, state}}. A leaf is an array,
or names a zarr folder that lies beside, in TensorStore's terms; older Orbax
wrote such a file too, whose leaves are then strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
import pathlib
from typing import Any

from etils import epath
from flax import serialization
import numpy as np
import tensorstore as ts

from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import from_array
from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

INDEX = 'checkpoint'
_VERSION = 3
_VERSIONS = (2, 3)  # in 2, bfloat16 was written as uint16
_PLACEHOLDER = 'PLACEHOLDER://'
_FLOATS = ('float32', 'bfloat16', 'float16', 'float64')
_CHUNK_BYTES = 64 * 1024 * 1024  # as t5x


def read(folder: epath.Path, part: str) -> dict[str, Tensor] | None:
  """Path -> tensor, of one part of the tree; None where it has no such part.

  Args:
    folder: holds the file `checkpoint`.
    part: 'target' or 'state'.

  Raises:
    UserError: a file is damaged or missing, or the version is not read.
  """
  tree = _index(folder / INDEX)
  if not isinstance(tree.get(part), Mapping):
    return None
  leaves = dict(_leaves(tree[part], ()))
  opened = {
      path: open_zarr(folder, _folder_name(folder, leaf))
      for path, leaf in leaves.items()
      if _is_reference(leaf)
  }
  return {
      path: opened[path]() if path in opened else from_array(np.asarray(leaf))
      for path, leaf in leaves.items()
  }


def read_folders(folder: epath.Path, part: str) -> dict[str, Tensor]:
  """The same where there is no index, by the names of zarr folders."""
  opened = {
      path.name: open_zarr(folder, path.name)
      for path in folder.iterdir()
      if path.name.startswith(f'{part}.') and (path / '.zarray').exists()
  }
  return {
      name.removeprefix(f'{part}.').replace('.', '/'): opened[name]()
      for name in sorted(opened)
  }


def check_floats(found: Mapping[str, Tensor], where: Any) -> None:
  """Raises UserError where a tensor is not of a floating type."""
  others = {
      path: np.dtype(tensor.dtype).name
      for path, tensor in found.items()
      if np.dtype(tensor.dtype).name not in _FLOATS
  }
  if others:
    path, dtype = next(iter(others.items()))
    raise errors.UserError(
        f'{len(others)} arrays in {where} are not of a floating type, such as'
        f' {path}, which is {dtype}. Old versions of t5x wrote bfloat16 as'
        ' uint16; load the checkpoint with such a version and save it as'
        ' float32.'
    )


def write(
    folder: epath.Path,
    target: Mapping[str, Tensor],
    step: int,
    states: Mapping[str, Mapping[str, Tensor]],
) -> None:
  """Writes the index and the zarr folders; one array is in memory at a time.

  Args:
    folder: is there and empty.
    target: path -> parameter.
    step: of training.
    states: path -> Adafactor's v, v_row, v_col and m; as t5x has it, v_row,
      v_col and what is of shape [1] goes into the index.
  """
  parameters = {
      path: _write_zarr(folder, f'target/{path}', tensor)
      for path, tensor in target.items()
  }
  moments: dict[str, Any] = {}
  for path, state in states.items():
    for name, tensor in state.items():
      place = f'{path}/{name}'
      if name in ('v', 'm') and tensor.shape != (1,):
        moments[place] = _write_zarr(
            folder, f'state/param_states/{place}', tensor
        )
      else:
        moments[place] = tensor.all()
  tree = {
      'target': tensors_lib.unflatten(parameters),
      'state': {
          'step': np.asarray(step, np.int32),
          'param_states': tensors_lib.unflatten(moments),
      },
  }
  # Last: a folder without it is no checkpoint.
  (folder / INDEX).write_bytes(
      serialization.msgpack_serialize({'version': _VERSION, 'optimizer': tree})
  )


def open_zarr(folder: epath.Path, name: str) -> Callable[[], Tensor]:
  """Starts opening the zarr folder `name`; call the result to have the tensor.

  Raises:
    UserError: when called: it is missing or damaged.
  """
  base = orbax_arrays.kvstore(folder)
  future = ts.open(
      {
          'driver': 'zarr',
          'kvstore': {**base, 'path': f'{base["path"]}{name}/'},
          # Else a file that was lost would be read as zeros.
          'fill_missing_data_reads': False,
      },
      read=True,
      open=True,
  )
  where = folder / name

  def result() -> Tensor:
    try:
      store = future.result()
    except ValueError as error:
      is_there = (where / '.zarray').exists()
      raise errors.UserError(
          f'{where / ".zarray"} {"is damaged" if is_there else "is not there"}:'
          f' {_reason(error)}. Copy the checkpoint again, all of its folders.'
      ) from error

    def read(index: Index) -> np.ndarray:
      try:
        return store[index].read().result()
      except ValueError as error:
        raise errors.UserError(
            f'An array in {where} cannot be read: {_reason(error)}. Copy the'
            ' checkpoint again, all of its files.'
        ) from error

    dtype = store.dtype.numpy_dtype
    return Tensor(tuple(store.shape), np.dtype(dtype), read)

  return result


def _index(path: epath.Path) -> dict[str, Any]:
  """The tree without its version."""
  data = path.read_bytes()
  if data.startswith(b'model_checkpoint_path'):
    raise errors.UserError(
        f'{path} is of TensorFlow (Mesh TensorFlow T5). Convert it with t5x'
        ' first, or take the same model as t5x or Hugging Face publish it.'
    )
  try:
    tree = serialization.msgpack_restore(data)
    version = tree.get('version')
  except Exception as error:  # msgpack's are of many kinds
    raise errors.UserError(
        f'{path} is cut off or is not a checkpoint of t5x ({error!r}). Copy it'
        ' again.'
    ) from error
  if version is None and 'target' in tree and 'optimizer' not in tree:
    return tree  # Orbax wrote it
  if version not in _VERSIONS:
    raise errors.UserError(
        f'{path} has version {version}; versions'
        f' {" and ".join(map(str, _VERSIONS))} can be read. Load it with the'
        ' t5x that wrote it and save it again.'
    )
  optimizer = tree.get('optimizer')
  if not isinstance(optimizer, dict):
    raise errors.UserError(
        f'{path} has no entry optimizer; it is not a checkpoint of t5x.'
    )
  return optimizer


def _leaves(tree: Mapping[str, Any], parents: tuple[str, ...]):
  for name, value in tree.items():
    path = (*parents, str(name))
    if isinstance(value, Mapping) and not _is_reference(value):
      yield from _leaves(value, path)
    elif value is not None:
      yield '/'.join(path), value


def _is_reference(leaf: Any) -> bool:
  if isinstance(leaf, Mapping):
    return 'driver' in leaf and 'kvstore' in leaf
  return isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER)


def _folder_name(folder: epath.Path, leaf: Any) -> str:
  """The zarr folder that a leaf names; its driver and bucket mean nothing."""
  if isinstance(leaf, str):
    path = leaf.removeprefix(_PLACEHOLDER)
  else:
    # Before TensorStore 0.1.14 the path stood beside the kvstore.
    path = leaf['kvstore'].get('path', leaf.get('path', ''))
  name = path.strip('/')
  if not name or '..' in pathlib.PurePosixPath(name).parts:
    raise errors.UserError(
        f'{folder / INDEX} names an array {path!r}, which is not a folder'
        ' beside it; the file is damaged. Copy it again.'
    )
  return name


def _write_zarr(
    folder: epath.Path, path: str, tensor: Tensor
) -> dict[str, Any]:
  """Writes an array, and gives what stands for it in the index."""
  name = path.replace('/', '.') + '/'
  base = orbax_arrays.kvstore(folder)
  metadata = {
      'chunks': _chunks(tensor),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(tensor.shape),
  }
  dtype = np.dtype(tensor.dtype).name
  store = ts.open(
      {
          'driver': 'zarr',
          'dtype': dtype,
          'kvstore': {**base, 'path': base['path'] + name},
          'metadata': metadata,
      },
      create=True,
  ).result()
  store.write(tensor.all()).result()
  return {
      'driver': 'zarr',
      'dtype': dtype,
      'kvstore': {'driver': 'file', 'path': name},
      'metadata': metadata,
  }


def _chunks(tensor: Tensor) -> list[int]:
  """Whole rows, as many as fit."""
  first, *rest = tensor.shape
  row = math.prod(rest) * np.dtype(tensor.dtype).itemsize
  return [min(max(_CHUNK_BYTES // row, 1), first), *rest]


def _reason(error: Exception) -> str:
  return ' '.join(str(error).split()).split(' [')[0]
