"""Tensors: placed box by box, compared pair by pair."""

import math
import threading
import time

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest

from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib

ARRAYS = {
    'a/kernel': np.arange(32.0, dtype=np.float32).reshape(4, 8),
    'b': np.arange(8.0).astype(ml_dtypes.bfloat16),
    'c': np.array(3.0, np.float16),
}


def tensors(arrays=ARRAYS):
  return {path: tensors_lib.from_array(x) for path, x in arrays.items()}


def watched(tensor, boxes):
  """The tensor, noting in `boxes` what is read of it."""

  def read(index):
    boxes.append(index)
    return tensor.read(index)

  return tensors_lib.Tensor(tensor.shape, tensor.dtype, read)


def test_trees_are_flattened_and_back():
  tree = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  flat = tensors_lib.flatten(tree)
  assert flat == {'a/b': 1, 'a/c/d': 2, 'e': 3}
  assert tensors_lib.unflatten(flat) == tree


def test_all_come_to_the_first_device_as_they_are():
  placed = tensors_lib.place(tensors())
  assert list(placed) == list(ARRAYS)
  for path, array in ARRAYS.items():
    assert placed[path].dtype == array.dtype
    assert placed[path].devices() == {jax.local_devices()[0]}
    np.testing.assert_array_equal(placed[path], array)


def part_of(data, size):
  start = data.draw(st.integers(0, size - 1))
  return slice(start, data.draw(st.integers(start + 1, size)))


@settings(max_examples=200)
@given(st.data())
def test_any_chain_of_views_is_that_of_numpy(data):
  shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
  array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
  tensor = tensors_lib.from_array(array)
  for _ in range(data.draw(st.integers(0, 4))):
    view = data.draw(st.sampled_from(['T', 'at', 'astype']))
    if view == 'T':
      tensor, array = tensor.T, array.T
    elif view == 'astype':
      dtype = data.draw(st.sampled_from(['float32', 'float16', 'bfloat16']))
      tensor, array = tensor.astype(dtype), array.astype(dtype)
    elif array.ndim > 1:
      axis = data.draw(st.integers(0, array.ndim - 1))
      number = data.draw(st.integers(0, array.shape[axis] - 1))
      tensor, array = tensor.at(axis, number), array.take(number, axis)
  assert tensor.shape == array.shape and tensor.dtype == array.dtype
  assert (tensor.size, tensor.nbytes) == (array.size, array.nbytes)
  np.testing.assert_array_equal(tensor.all(), array)
  box = tuple(part_of(data, size) for size in array.shape)
  part = tensor.read(box)
  assert part.dtype == array.dtype
  np.testing.assert_array_equal(part, array[box])


def test_what_does_not_fit_another_dtype_is_infinite_and_counted():
  tensor = tensors_lib.from_array(np.array([1.0, 1e6], np.float32))
  narrow = tensor.astype('float16').all()
  assert tensors_lib.count_nonfinite(narrow) == 1
  assert tensor.astype('float32') is tensor


def test_transposed_tensors_are_placed_transposed():
  tensor = tensors()['a/kernel'].T
  placed = tensors_lib.place({'x': tensor})['x']
  np.testing.assert_array_equal(placed, ARRAYS['a/kernel'].T)


def test_each_device_reads_its_own_box_and_replicas_once():
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  boxes = []
  tensor = watched(tensors()['a/kernel'], boxes)
  sharding = NamedSharding(mesh, PartitionSpec('fsdp', 'tensor'))
  placed = tensors_lib.place({'x': tensor}, {'x': sharding})['x']
  assert placed.sharding == sharding
  np.testing.assert_array_equal(placed, ARRAYS['a/kernel'])
  assert sorted((i.start, i.stop, j.start, j.stop) for i, j in boxes) == [
      (0, 2, 0, 4),
      (0, 2, 4, 8),
      (2, 4, 0, 4),
      (2, 4, 4, 8),
  ]


@pytest.mark.parametrize(
    'spec, boxes_read',
    [
        (PartitionSpec(), 1),
        (PartitionSpec('tensor'), 2),
        (PartitionSpec(None, ('fsdp', 'tensor')), 4),
        (PartitionSpec('data', ('fsdp', 'tensor')), 8),
    ],
)
def test_as_many_boxes_are_read_as_there_are_different_ones(spec, boxes_read):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  boxes = []
  tensor = watched(tensors()['a/kernel'], boxes).T.T
  sharding = NamedSharding(mesh, spec)
  placed = tensors_lib.place({'x': tensor}, {'x': sharding}, dtype='bfloat16')
  np.testing.assert_array_equal(placed['x'], ARRAYS['a/kernel'])
  assert placed['x'].sharding.is_equivalent_to(sharding, 2)
  assert placed['x'].dtype == jnp.bfloat16
  assert len(boxes) == boxes_read
  read = sum((i.stop - i.start) * (j.stop - j.start) for i, j in boxes)
  assert read == tensor.size  # nothing twice


def test_little_more_is_held_at_once_than_the_largest_tensor():
  held, peak, lock = [0], [0], threading.Lock()
  shapes = [(64, 16)] + [(16, 16)] * 12
  largest, other = 64 * 16 * 4, 16 * 16 * 4

  class Counted(np.ndarray):

    def __del__(self):
      if self.base is None:
        with lock:
          held[0] -= self.nbytes

  def read_of(shape):
    def read(index):
      array = np.ones(shape, np.float32).view(Counted).copy()
      with lock:
        held[0] += array.nbytes
        peak[0] = max(peak[0], held[0])
      return array.T  # not contiguous, so that JAX makes a copy

    return tensors_lib.Tensor(shape[::-1], np.dtype(np.float32), read)

  tensors_lib.place({str(i): read_of(shape) for i, shape in enumerate(shapes)})
  # JAX lets go of what it copied a moment later, when the next one is there.
  assert largest <= peak[0] <= largest + 2 * other


def test_bytes_being_read_never_exceed_the_largest_tensor():
  reading, peak, lock = [0], [0], threading.Lock()

  def slow(size):
    def read(index):
      array = np.ones(size, np.float32)[index]
      with lock:
        reading[0] += array.nbytes
        peak[0] = max(peak[0], reading[0])
      time.sleep(0.02)  # so that threads meet
      with lock:
        reading[0] -= array.nbytes
      return array

    return tensors_lib.Tensor((size,), np.dtype(np.float32), read)

  sizes = [64, *[16] * 20]
  tensors_lib.place({str(i): slow(size) for i, size in enumerate(sizes)})
  assert peak[0] == 4 * 64  # and the small ones are read four at a time


def test_another_dtype_on_request():
  placed = tensors_lib.place(tensors(), dtype='float32')
  assert {x.dtype for x in placed.values()} == {jnp.dtype('float32')}
  np.testing.assert_array_equal(placed['b'], np.arange(8.0))


@pytest.mark.parametrize(
    'dtype', [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(dtype, value):
  array = np.linspace(-3, 3, 12).reshape(3, 4).astype(dtype)
  assert tensors_lib.count_nonfinite(array) == 0
  array[1, 2] = array[0, 0] = value
  assert tensors_lib.count_nonfinite(array) == 2
  assert tensors_lib.count_nonfinite(array.T) == 2


def test_the_largest_and_smallest_numbers_are_finite():
  for dtype in (np.float16, ml_dtypes.bfloat16):
    limits = ml_dtypes.finfo(dtype)
    array = np.array([limits.max, limits.min, limits.tiny, 0.0], dtype)
    assert tensors_lib.count_nonfinite(array) == 0


def test_nan_is_refused_by_name_unless_allowed():
  arrays = {
      'good': np.ones(2, np.float32),
      'bad': np.array([1, np.nan], np.float32),
      'worse': np.array([np.inf, np.nan], np.float32),
  }
  with pytest.raises(errors.UserError, match=r'in bad \(1\), worse \(2\)\.'):
    tensors_lib.place(tensors(arrays))
  placed = tensors_lib.place(tensors(arrays), allow_nonfinite=True)
  np.testing.assert_array_equal(placed['worse'], arrays['worse'])


def compared(a, b):
  return dict(tensors_lib.compare(tensors({'x': a}), tensors({'x': b})))['x']


def test_equal_bytes_are_no_difference():
  a = np.array([1.0, np.nan, -0.0], np.float32)
  assert compared(a, a.copy()).largest == 0.0
  assert compared(a, a.copy()).nonfinite == 1


def test_differences_are_absolute_and_dtypes_are_told():
  a = np.array([1.0, 2.0], np.float32)
  difference = compared(a, np.array([1.0, 2.5], np.float16))
  assert difference.largest == 0.5
  assert difference.dtypes == (np.dtype('float32'), np.dtype('float16'))


def test_nan_against_a_number_is_as_far_as_can_be():
  a = np.array([1.0, np.inf], np.float32)
  assert compared(a, np.array([np.nan, np.inf], np.float32)).largest == np.inf
  assert compared(a, np.array([1.0, -np.inf], np.float32)).largest == np.inf
