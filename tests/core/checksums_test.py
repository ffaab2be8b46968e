"""No byte can change without being noticed, in arrays and in files."""

from etils import epath
import ml_dtypes
import numpy as np
import pytest

from distillspec_jax.core import checksums
from distillspec_jax.core import errors

DTYPES = ('float32', 'float16', ml_dtypes.bfloat16, 'int32', 'uint32', 'bool')


def some(dtype, shape=(3, 5, 2), seed=0):
  values = np.random.default_rng(seed).integers(0, 255, shape)
  return np.asarray(values, np.float64).astype(dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_boxes_add_up(dtype):
  array = some(dtype)
  boxes = [
      ((i, j, 0), array[i : i + 2, j : j + 3])
      for i in range(0, 3, 2)
      for j in range(0, 5, 3)
  ]
  total = sum(checksums.of_box(box, start) for start, box in boxes)
  assert total % 2**32 == checksums.of_box(array)


@pytest.mark.parametrize('dtype', DTYPES)
def test_every_byte_counts(dtype):
  array = some(dtype)
  checksum = checksums.of_box(array)
  raw = array.tobytes()
  for place in range(len(raw)):
    for flip in (1, 0x80, 0xFF):
      changed = bytearray(raw)
      changed[place] ^= flip
      changed = np.frombuffer(bytes(changed), array.dtype).reshape(array.shape)
      assert checksums.of_box(changed) != checksum, (place, flip)


def test_places_count():
  array = some('float32', (8, 6))
  checksum = checksums.of_box(array)
  assert checksums.of_box(array[::-1]) != checksum
  assert checksums.of_box(array[:, ::-1]) != checksum
  swapped = np.roll(array.reshape(2, 4, 6), 1, axis=0).reshape(8, 6)
  assert checksums.of_box(swapped) != checksum


def test_a_scalar_and_an_empty_array():
  assert checksums.of_box(np.int32(7)) == 7
  assert checksums.of_box(np.zeros((0, 3), np.float32)) == 0


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'a.json').write_text('{"x": 1}')
  (tmp_path / 'b').write_bytes(bytes(range(20)))
  (tmp_path / 'inner').mkdir()
  checksums.write(epath.Path(tmp_path), {'w': ['float32', [2], 5]})
  return epath.Path(tmp_path)


def test_files_that_are_as_written(folder):
  assert checksums.check(folder) == {'w': ['float32', [2], 5]}
  (folder / 'more').write_text('')  # is not the folder's
  assert checksums.check(folder)
  (folder / checksums.FILE).unlink()
  assert checksums.check(folder) == {}


@pytest.mark.parametrize('name', ['a.json', 'b', checksums.FILE])
def test_a_file_that_is_not_as_written_is_named(folder, name):
  path = folder / name
  raw = path.read_bytes()
  for place in range(len(raw)):
    changed = bytearray(raw)
    changed[place] ^= 1
    path.write_bytes(changed)
    with pytest.raises(errors.UserError, match=f'{name} is damaged'):
      checksums.check(folder)
  path.write_bytes(raw[:-3])
  with pytest.raises(errors.UserError, match='damaged'):
    checksums.check(folder)
  path.write_bytes(raw)
  checksums.check(folder)


def test_a_file_that_is_missing_is_named(folder):
  (folder / 'b').unlink()
  with pytest.raises(errors.UserError, match='b is missing'):
    checksums.check(folder)
