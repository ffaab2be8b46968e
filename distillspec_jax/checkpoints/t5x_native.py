"""t5x's native layout: a msgpack file `checkpoint` and zarr folders.

The file is a tree {version, optimizer: {target, state}}. A leaf is an array, or
a TensorStore spec that names a zarr folder. Older Orbax wrote such a file too,
without the outer two levels; its leaves are strings.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors
from distillspec_jax.core import sources

INDEX = 'checkpoint'
_VERSION = 3
_VERSIONS = (2, 3)  # in 2, bfloat16 was written as uint16
_PLACEHOLDER = 'PLACEHOLDER://'
_CHUNK_BYTES = 64 * 1024 * 1024  # as t5x


def read(folder: epath.Path, part: str) -> dict[str, Tensor]:
  """Path -> tensor, of one part of the tree; empty where it has no such part.

  Args:
    folder: holds the file `checkpoint`.
    part: 'target' (the parameters) or 'state' (the optimizer's).

  Raises:
    UserError: a file is damaged or missing, or the version is not read.
  """
  tree = _index(folder / INDEX)
  if not isinstance(tree.get(part), Mapping):
    return {}
  leaves = dict(_leaves(tree[part], ()))
  names = {
      path: _folder_name(folder, leaf)
      for path, leaf in leaves.items()
      if _is_reference(leaf)
  }
  inline = {
      path: from_array(np.asarray(leaf))
      for path, leaf in leaves.items()
      if path not in names
  }
  return inline | orbax_arrays.open_arrays(folder, names)


def read_folders(folder: epath.Path, part: str) -> dict[str, Tensor]:
  """The same where there is no index, by the names of zarr folders."""
  names = {
      child.name.removeprefix(f'{part}.').replace('.', '/'): child.name
      for child in sorted(folder.iterdir())
      if child.name.startswith(f'{part}.') and (child / '.zarray').exists()
  }
  return orbax_arrays.open_arrays(folder, names)


def write(
    folder: epath.Path,
    target: Mapping[str, Tensor],
    step: int,
    states: Mapping[str, Tensor],
) -> None:
  """Writes the index and the zarr folders; one array is in memory at a time.

  Args:
    folder: exists and is empty.
    target: path -> parameter.
    step: of training.
    states: path of a parameter, '/' and v, v_row, v_col or m -> Adafactor's.
  """
  parameters = {
      path: _write_zarr(folder, f'target/{path}', tensor)
      for path, tensor in target.items()
  }
  moments: dict[str, Any] = {}
  for path, tensor in states.items():
    # As t5x does: what is small, or not used, is in the index itself.
    if path.endswith(('/v', '/m')) and tensor.shape != (1,):
      moments[path] = _write_zarr(folder, f'state/param_states/{path}', tensor)
    else:
      moments[path] = tensor.all()
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


def _index(path: epath.Path) -> dict[str, Any]:
  """The tree without its version."""
  data = sources.read_bytes(path)
  if data.startswith(b'model_checkpoint_path'):
    raise errors.UserError(
        f'{path} is of TensorFlow (Mesh TensorFlow T5). Convert it with t5x'
        ' first, or take the same model as t5x or Hugging Face publish it.'
    )
  try:
    tree = serialization.msgpack_restore(data)
    version = tree.get('version')
  except Exception as error:  # msgpack raises many kinds
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
  """The zarr folder that a leaf names.

  Driver and bucket are those of the machine that wrote the checkpoint; the
  arrays are next to the index wherever that was copied to.
  """
  if isinstance(leaf, str):
    path = leaf.removeprefix(_PLACEHOLDER)
  else:
    # Before TensorStore 0.1.14 the path was next to the kvstore, not in it.
    store = leaf['kvstore']
    path = leaf.get('path', '')
    path = store.get('path', path) if isinstance(store, Mapping) else store
  name = path.strip('/') if isinstance(path, str) else ''
  is_url = '://' in name
  if not name or is_url or '..' in pathlib.PurePosixPath(name).parts:
    raise errors.UserError(
        f'{folder / INDEX} names an array {path!r}, which is not a folder'
        ' next to it; the file is damaged. Copy it again.'
    )
  return name


def _write_zarr(
    folder: epath.Path, path: str, tensor: Tensor
) -> dict[str, Any]:
  """Writes an array; returns the spec that refers to it in the index."""
  name = path.replace('/', '.')
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
          'kvstore': orbax_arrays.array_store(folder, name),
          'metadata': metadata,
      },
      create=True,
  ).result()
  store.write(tensor.all()).result()
  return {
      'driver': 'zarr',
      'dtype': dtype,
      'kvstore': {'driver': 'file', 'path': f'{name}/'},
      'metadata': metadata,
  }


def _chunks(tensor: Tensor) -> list[int]:
  """The shape of a chunk: as many rows as fit into _CHUNK_BYTES."""
  first, *rest = tensor.shape
  row = math.prod(rest) * np.dtype(tensor.dtype).itemsize
  return [min(max(_CHUNK_BYTES // row, 1), first), *rest]
