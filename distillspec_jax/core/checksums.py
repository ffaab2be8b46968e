"""Checksums of files and arrays: what is read is what was written.

A folder's small files are listed with their SHA-256 in FOLDER/checksums.json,
next to the checksums of the arrays in it, which many processes may write and
each may read in boxes of its own. The checksum of an array is therefore a sum
modulo 2^32 over its elements' bits, each multiplied by odd numbers that depend
on its place: sums of boxes add up, and no change of one element goes unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any

from etils import epath
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import sources

FILE = 'checksums.json'
_DIGEST = 'digest'


def of_box(box: np.ndarray, start: Sequence[int] | None = None) -> int:
  """The share in an array's checksum of the box that begins at `start`."""
  box = np.ascontiguousarray(box).reshape(box.shape)
  sums = box.view(f'u{box.dtype.itemsize}')
  for axis in reversed(range(box.ndim)):
    first = 0 if start is None else start[axis]
    weights = _weights(axis, first, first + box.shape[axis])
    sums = np.einsum(
        '...i,i->...', sums, weights, dtype=np.uint32, casting='unsafe'
    )
  return int(sums) & 0xFFFFFFFF


def _weights(axis: int, start: int, stop: int) -> np.ndarray:
  """uint32[stop - start] odd numbers that look random (murmur3's mixing)."""
  x = np.arange(start, stop, dtype=np.uint64).astype(np.uint32)
  x += np.uint32(0x9E3779B9 * (axis + 1) & 0xFFFFFFFF)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
  return (x ^ (x >> np.uint32(16))) | np.uint32(1)


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values, which JSON can hold, with a digest of them."""
  return {**values, _DIGEST: _digest(values)}


def unsealed(values: Any, what: Any, remedy: str) -> dict[str, Any]:
  """What `sealed` was given.

  Args:
    values: that were read.
    what: they are, for the message.
    remedy: likewise.

  Raises:
    UserError: they are not what was sealed.
  """
  if not isinstance(values, dict) or values.get(_DIGEST) != _digest(values):
    raise errors.UserError(
        f'{what} is damaged: its checksum is another than it was written'
        f' with; {remedy}.'
    )
  return {name: x for name, x in values.items() if name != _DIGEST}


def _digest(values: Mapping[str, Any]) -> str:
  rest = {name: x for name, x in values.items() if name != _DIGEST}
  text = json.dumps(rest, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write(folder: epath.Path, arrays: Mapping[str, Any] | None = None) -> None:
  """Writes FOLDER/checksums.json, of all files that are there.

  Args:
    folder: with files; those in its subfolders are not listed.
    arrays: checksums of the arrays that lie there.
  """
  files = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.iterdir())
      if path.is_file() and path.name != FILE
  }
  text = json.dumps(sealed({'files': files, 'arrays': dict(arrays or {})}))
  (folder / FILE).write_text(text + '\n')


def check(folder: epath.Path) -> dict[str, Any]:
  """The checksums of the arrays in a folder, whose files are as written.

  A folder without checksums, as earlier versions wrote it, has none.

  Raises:
    UserError: a file is missing, or another than was written.
  """
  path = folder / FILE
  if not path.exists():
    return {}
  remedy = 'copy or write the folder again'
  try:
    values = json.loads(sources.read_bytes(path))
  except errors.UserError:
    raise
  except (ValueError, RecursionError):
    values = None
  values = unsealed(values, path, remedy)
  for name, digest in values['files'].items():
    file = folder / name
    if not file.exists():
      raise errors.UserError(f'{file} is missing; {remedy}.')
    if hashlib.sha256(sources.read_bytes(file)).hexdigest() != digest:
      raise errors.UserError(
          f'{file} is damaged or was edited: its checksum is not that in'
          f' {path}; {remedy}, or remove {FILE} if you edited it.'
      )
  return values['arrays']
