"""Arrays that Orbax wrote, read box by box.

Orbax restores whole trees into given shardings; to convert, compare and rename
tensors one at a time they are opened one by one here, by TensorStore, with the
names and drivers that Orbax's own metadata file gives.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath
import numpy as np
import tensorstore as ts

from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

_METADATA = '_METADATA'


def is_one(folder: epath.Path) -> bool:
  return (folder / _METADATA).exists()


def read(folder: epath.Path, prefix: tuple[str, ...] = ()) -> dict[str, Tensor]:
  """Path with slashes -> tensor, of the subtree under `prefix`.

  Raises:
    UserError: the folder is not Orbax's, or is damaged.
  """
  try:
    metadata = json.loads((folder / _METADATA).read_text())
    keys = [
        tuple(str(part['key']) for part in entry['key_metadata'])
        for entry in metadata['tree_metadata'].values()
        if entry['value_metadata'].get('value_type') != 'None'
    ]
  except FileNotFoundError as error:
    raise errors.UserError(
        f'{folder} is not a folder of Orbax: {_METADATA} is not there.'
    ) from error
  except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError,
  ) as error:  # fmt: skip
    raise errors.UserError(
        f'{folder / _METADATA} is damaged ({error!r}); copy it again.'
    ) from error
  spec: dict[str, Any] = {'driver': 'zarr3'}
  if not metadata.get('use_zarr3'):
    # A chunk that was lost is an error, not zeros.
    spec = {'driver': 'zarr', 'fill_missing_data_reads': False}
  in_database = metadata.get('use_ocdbt', (folder / 'manifest.ocdbt').exists())
  keys = [key for key in keys if key[: len(prefix)] == prefix]
  key, opened, tensors = (), {}, {}
  try:
    for key in keys:  # all are under way before the first is waited for
      where = _kvstore(folder, '.'.join(key), in_database)
      opened[key] = ts.open({**spec, 'kvstore': where}, read=True, open=True)
    for key in keys:
      found = tensor(opened[key].result(), folder)
      tensors['/'.join(key[len(prefix) :])] = found
  except ValueError as error:
    raise errors.UserError(
        f'{"/".join(key)} in {folder} cannot be read:'
        f' {" ".join(str(error).split())[:200]}. Copy the folder again.'
    ) from error
  return tensors


def tensor(store: ts.TensorStore, where: Any) -> Tensor:
  """A TensorStore array as a tensor; `where` is for messages."""

  def read(index: Index) -> np.ndarray:
    try:
      return store[index].read().result()
    except ValueError as error:
      raise errors.UserError(
          f'An array in {where} is damaged:'
          f' {" ".join(str(error).split())[:200]}. Copy it again.'
      ) from error

  return Tensor(tuple(store.shape), store.dtype.numpy_dtype, read)


def kvstore(folder: epath.Path) -> dict[str, Any]:
  """TensorStore's name of a folder, local or in a bucket."""
  text = str(folder)
  if text.startswith('gs://'):
    bucket, _, path = text.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{path}/'}
  return {'driver': 'file', 'path': f'{epath.Path(folder).resolve()}/'}


def _kvstore(
    folder: epath.Path, name: str, in_database: bool
) -> dict[str, Any]:
  base = kvstore(folder)
  if in_database:
    return {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
  return {**base, 'path': f'{base["path"]}{name}/'}
