"""Arrays that Orbax wrote, read box by box.

Orbax restores whole trees into given shardings. To convert, compare and rename
tensors one at a time, they are opened here one by one with TensorStore, by the
names and drivers that Orbax's own metadata file gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
from typing import Any

from etils import epath
import numpy as np
import tensorstore as ts

from distillspec_jax.checkpoints import json_files
from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors
from distillspec_jax.core import sources

_METADATA = '_METADATA'
_MAX_CHUNK = 2**24  # elements; a small array may be in a larger chunk


def is_checkpoint(folder: epath.Path) -> bool:
  """Whether Orbax wrote the folder."""
  return (folder / _METADATA).exists()


def read(folder: epath.Path, prefix: tuple[str, ...] = ()) -> dict[str, Tensor]:
  """Path with slashes -> tensor, of the subtree under `prefix`.

  Raises:
    UserError: the folder is not Orbax's, or is damaged.
  """
  if not is_checkpoint(folder):
    raise errors.UserError(
        f'{folder} is not a folder of Orbax: {_METADATA} is not there.'
    )
  with json_files.parsing(folder / _METADATA, 'copy it again'):
    metadata = json.loads(sources.read_bytes(folder / _METADATA))
    keys = [
        tuple(str(part['key']) for part in entry['key_metadata'])
        for entry in metadata['tree_metadata'].values()
        if entry['value_metadata'].get('value_type') != 'None'
    ]
  # In OCDBT, a database in the folder, all arrays share a few files; without
  # it, each has a folder of its own. Older metadata do not say which it is.
  in_database = metadata.get('use_ocdbt', (folder / 'manifest.ocdbt').exists())
  names = {
      '/'.join(key[len(prefix) :]): '.'.join(key)
      for key in keys
      if key[: len(prefix)] == prefix
  }
  driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
  return open_arrays(folder, names, driver, in_database)


def open_arrays(
    folder: epath.Path,
    names: Mapping[str, str],
    driver: str = 'zarr',
    in_database: bool = False,
) -> dict[str, Tensor]:
  """Path -> tensor, of path -> name of an array in the folder.

  Raises:
    UserError: an array is missing or damaged.
  """
  sources.check_all_regular(folder)  # TensorStore would wait for a pipe
  spec: dict[str, Any] = {'driver': driver}
  if driver == 'zarr':
    # By default a chunk whose file was lost is read as zeros.
    spec['fill_missing_data_reads'] = False
  opening, tensors = {}, {}
  for path, name in names.items():  # all, before the first is waited for
    store = array_store(folder, name, in_database)
    with _explained(path, folder):
      opening[path] = ts.open({**spec, 'kvstore': store}, read=True, open=True)
  for path, future in opening.items():
    with _explained(path, folder):
      store = future.result()
      _check_chunks(store)
      tensors[path] = _tensor(store, path, folder)
  return tensors


def _check_chunks(store: ts.TensorStore) -> None:
  """Raises ValueError for chunks that the memory may not hold."""
  chunk = math.prod(store.chunk_layout.read_chunk.shape or ())
  if chunk > max(math.prod(store.shape), _MAX_CHUNK):
    raise ValueError(f'its chunks would have {chunk} elements')


def _tensor(store: ts.TensorStore, path: str, folder: epath.Path) -> Tensor:
  def read(index: Index) -> np.ndarray:
    with _explained(path, folder):
      return store[index].read().result()

  return Tensor(tuple(store.shape), np.dtype(store.dtype.numpy_dtype), read)


@contextlib.contextmanager
def _explained(path: str, folder: epath.Path) -> Iterator[None]:
  try:
    yield
  except (ValueError, RuntimeError, OSError, MemoryError) as error:
    # Without the source lines that TensorStore appends in brackets.
    reason = ' '.join(str(error).split()).split(' [')[0]
    raise errors.UserError(
        f'{path} in {folder} cannot be read: {reason}. Copy the checkpoint'
        ' again, all of its files.'
    ) from error


def array_store(
    folder: epath.Path, name: str, in_database: bool = False
) -> dict[str, Any]:
  """TensorStore's key-value store of the array `name` in a folder."""
  text = str(folder)
  if text.startswith('gs://'):
    bucket, _, path = text.removeprefix('gs://').partition('/')
    base = {'driver': 'gcs', 'bucket': bucket, 'path': f'{path}/'}
  else:  # TensorStore takes absolute paths only
    base = {'driver': 'file', 'path': f'{epath.Path(folder).resolve()}/'}
  if in_database:
    return {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
  return {**base, 'path': f'{base["path"]}{name}/'}
