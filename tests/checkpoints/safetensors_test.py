"""The format, read in parts and written in a stream."""

import json
import struct

from etils import epath
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import ml_dtypes
import numpy as np
import pytest

from distillspec_jax.checkpoints import safetensors
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def save(path, arrays):
  safetensors.write(
      epath.Path(path),
      {name: tensors_lib.from_array(x) for name, x in arrays.items()},
  )


def some_arrays(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {
      'matrix': rng.normal(size=(5, 3)).astype(dtype),
      'scalar': np.array(2.5, dtype),
      'empty': np.zeros((0, 4), dtype),
      'cube': rng.normal(size=(2, 3, 4)).astype(dtype),
  }


@pytest.mark.parametrize('dtype', DTYPES)
def test_what_is_written_is_read(tmp_path, dtype):
  arrays = some_arrays(dtype)
  save(tmp_path / 'x', arrays)
  tensors = safetensors.read(epath.Path(tmp_path / 'x'))
  assert list(tensors) == list(arrays)
  for name, array in arrays.items():
    assert tensors[name].dtype == array.dtype
    assert tensors[name].shape == array.shape
    assert tensors[name].all().tobytes() == array.tobytes()


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_files_are_those_of_the_formats_own_package(tmp_path, dtype):
  official = pytest.importorskip(
      'safetensors.numpy',
      reason="needs safetensors: pip install -e '.[test]'",
  )
  arrays = some_arrays(dtype)
  save(tmp_path / 'ours', arrays)
  theirs = official.load_file(tmp_path / 'ours')
  official.save_file(arrays, tmp_path / 'theirs')
  ours = safetensors.read(epath.Path(tmp_path / 'theirs'))
  for name, array in arrays.items():
    np.testing.assert_array_equal(theirs[name], array)
    np.testing.assert_array_equal(ours[name].all(), array)


@settings(max_examples=100)
@given(st.data())
def test_any_box_is_that_of_the_array(tmp_path_factory, data):
  shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
  array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  path = tmp_path_factory.mktemp('box') / 'x'
  save(path, {'before': array, 'x': array, 'after': array})
  tensor = safetensors.read(epath.Path(path))['x']
  box = []
  for size in shape:
    start = data.draw(st.integers(0, size - 1))
    box.append(slice(start, data.draw(st.integers(start + 1, size))))
  box = tuple(box)
  np.testing.assert_array_equal(tensor.read(box), array[box])
  np.testing.assert_array_equal(tensor.T.read(box[::-1]), array[box].T)
  axis = data.draw(st.integers(0, len(shape) - 1))
  number = data.draw(st.integers(0, shape[axis] - 1))
  rest = box[:axis] + box[axis + 1 :]
  np.testing.assert_array_equal(
      tensor.at(axis, number).read(rest), np.take(array, number, axis)[rest]
  )


def with_header(path, header, data=b'', length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  size = len(text) if length is None else length
  path.write_bytes(struct.pack('<Q', size) + text + data)


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {
      'x': {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}
  }


@pytest.mark.parametrize(
    'header, data, length, message',
    [
        (entry(), b'1234', None, 'x in .* ends at byte .* cut off at'),
        (
            entry(),
            b'',
            10_000,
            'no complete safetensors file: its header would',
        ),
        (b'', b'', 1 << 60, 'its header would be'),
        (b'{"x":', b'', None, 'header of .* is damaged'),
        (b'[]', b'', None, 'header of .* is damaged'),
        ({'x': {'dtype': 'F32'}}, b'', None, 'header of .* is damaged'),
        (entry('I8'), b'12345678', None, 'x in .* is of type I8; only BF16'),
        (entry(shape=(3,)), b'12345678', None, '12 bytes, but .* bytes 0 to 8'),
        (entry(offsets=(-8, 0)), b'12345678', None, 'bytes -8 to 0'),
        (entry(offsets=(8, 16)), b'12345678', None, 'cut off'),
        (entry(dtype=[1]), b'12345678', None, 'x in .* is of type'),
        (entry(shape=(2.0,)), b'12345678', None, 'header of .* is damaged'),
        (entry(offsets=(0,)), b'12345678', None, 'header of .* is damaged'),
        (entry(offsets=(0, 1e999)), b'', None, 'header of .* is damaged'),
        (b'[' * 100_000, b'', None, 'header of .* is damaged'),
        (entry(), b'12345678more', None, '12 bytes of data, .* take 8'),
        (entry(offsets=(4, 12)), b'x' * 12, None, 'x .* byte 4 .* ends at 0'),
        (
            {**entry(), 'y': entry(offsets=(4, 12))['x']},
            b'x' * 12,
            None,
            'y .* begins at byte 4 of the data, but the one .* ends at 8',
        ),
    ],
)
def test_damage_is_named(tmp_path, header, data, length, message):
  with_header(tmp_path / 'x', header, data, length)
  with pytest.raises(errors.UserError, match=message):
    safetensors.read(epath.Path(tmp_path / 'x'))


def test_tensors_may_lie_in_any_order(tmp_path):
  last, first = entry(offsets=(8, 16)), entry()
  header = {'last': last['x'], 'first': first['x']}
  data = np.arange(4, dtype=np.float32)
  with_header(tmp_path / 'x', header, data.tobytes())
  tensors = safetensors.read(epath.Path(tmp_path / 'x'))
  np.testing.assert_array_equal(tensors['first'].all(), data[:2])
  np.testing.assert_array_equal(tensors['last'].all(), data[2:])


@pytest.mark.parametrize(
    'header, data',
    [
        ({'x': entry()['x'], 'y': entry()['x']}, b'12345678'),
        ({'x': entry()['x'], 'y': entry(offsets=(16, 24))['x']}, b'x' * 24),
        (entry(), b'12345678more'),
        (entry(shape=(2.0,)), b'12345678'),
    ],
)
def test_the_formats_own_package_refuses_it_too(tmp_path, header, data):
  official = pytest.importorskip(
      'safetensors',
      reason="needs safetensors: pip install -e '.[test]'",
  )
  with_header(tmp_path / 'x', header, data)
  with pytest.raises(errors.UserError):
    safetensors.read(epath.Path(tmp_path / 'x'))
  with pytest.raises(official.SafetensorError):
    official.deserialize((tmp_path / 'x').read_bytes())


@settings(max_examples=300)
@given(place=st.integers(0, 400), byte=st.integers(0, 255))
def test_no_byte_of_a_header_that_is_changed_crashes(
    tmp_path_factory, place, byte
):
  folder = tmp_path_factory.mktemp('flipped', numbered=True)
  save(folder / 'x', some_arrays())
  data = bytearray((folder / 'x').read_bytes())
  length = 8 + int.from_bytes(data[:8], 'little')
  data[place % length] = byte
  (folder / 'x').write_bytes(data)
  try:
    for tensor in safetensors.read(epath.Path(folder / 'x')).values():
      tensor.all()
  except errors.UserError as error:
    assert str(folder / 'x') in str(error)


@pytest.mark.parametrize('size', [0, 4, 8])
def test_a_file_without_a_header_is_named(tmp_path, size):
  (tmp_path / 'x').write_bytes(b'\1' * size)
  with pytest.raises(errors.UserError, match='no complete safetensors file'):
    safetensors.read(epath.Path(tmp_path / 'x'))


def test_every_way_to_cut_a_file_off_is_noticed(tmp_path):
  save(tmp_path / 'whole', {'x': np.ones(3, np.float32)})
  data = (tmp_path / 'whole').read_bytes()
  for size in range(len(data)):
    (tmp_path / 'cut').write_bytes(data[:size])
    with pytest.raises(errors.UserError):
      safetensors.read(epath.Path(tmp_path / 'cut'))


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
  save(tmp_path / 'x', {'x': np.ones(3, np.float32)})
  tensor = safetensors.read(epath.Path(tmp_path / 'x'))['x']
  data = (tmp_path / 'x').read_bytes()
  (tmp_path / 'x').write_bytes(data[:-4])
  with pytest.raises(errors.UserError, match='ended while it was being read'):
    tensor.all()
