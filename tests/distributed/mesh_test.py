"""The device mesh, and work on the rows of each device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib


@pytest.mark.parametrize(
    'sizes, message',
    [
        ({'data': 3}, 'The mesh is data 3 x fsdp 1 x tensor 1 = 3 devices'),
        ({'fsdp': 3}, 'but there are 8'),
        ({'fsdp': 0}, 'mesh.fsdp is 0; it must be at least 1'),
        ({'tensor': -1}, 'mesh.tensor is -1; it must be at least 1'),
        ({'data': 0}, r'mesh.data is 0; it must be at least 1 \(or be -1\)'),
        ({'data': -2}, 'mesh.data is -2'),
        ({'tensor': 1.5}, 'mesh.tensor is 1.5'),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices(sizes, message):
  with pytest.raises(errors.UserError, match=message):
    mesh_lib.make_mesh(**sizes)


def test_remaining_devices_go_to_the_rows():
  mesh = mesh_lib.make_mesh(fsdp=2, tensor=2)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  some = mesh_lib.make_mesh(devices=jax.devices()[:2])
  assert dict(some.shape) == {'data': 2, 'fsdp': 1, 'tensor': 1}


def test_a_batch_that_does_not_divide_the_mesh():
  mesh = mesh_lib.make_mesh(fsdp=2, tensor=2)
  mesh_lib.check_batch(mesh, 12)
  with pytest.raises(
      errors.UserError, match='batch size 6 is not a multiple of 4'
  ):
    mesh_lib.check_batch(mesh, 6)


@pytest.mark.parametrize(
    'axes, share', [(mesh_lib.ROWS, 2), (mesh_lib.AXES, 1)]
)
def test_each_device_sees_its_own_rows(axes, share):
  def function(weight, rows):
    seen.append(rows.shape)
    return rows * weight

  rows = jnp.arange(16.0).reshape(8, 2)
  weight = jnp.float32(3)
  seen = []
  with jax.set_mesh(mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)):
    run = jax.jit(lambda w, r: mesh_lib.shard_over_batch(function, w, r, axes))
    np.testing.assert_array_equal(run(weight, rows), 3 * rows)
    assert seen == [(share, 2)]
    seen.clear()
    np.testing.assert_array_equal(run(weight, rows[:6]), 3 * rows[:6])
    assert seen == [(3, 2)]  # 6 rows are spread over 2 of 4 or 8 devices
  seen.clear()
  np.testing.assert_array_equal(
      mesh_lib.shard_over_batch(function, weight, rows, axes), 3 * rows
  )
  assert seen == [(8, 2)]


@pytest.mark.parametrize('axes', [mesh_lib.ROWS, mesh_lib.AXES])
@pytest.mark.parametrize('count', [8, 6, 3])
def test_gradients_of_what_is_replicated_are_summed_once(axes, count):
  def loss(weight, rows):
    each = mesh_lib.shard_over_batch(
        lambda weight, rows: jnp.sum(jnp.sin(rows @ weight))[None],
        weight,
        rows,
        axes,
    )
    return jnp.sum(each)

  rng = np.random.default_rng(0)
  rows, weight = rng.standard_normal((count, 4)), rng.standard_normal((4, 6))
  expected = jax.grad(loss)(weight, rows)
  with jax.set_mesh(mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)):
    actual = jax.jit(jax.grad(loss))(weight, rows)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_loops_end_where_their_rows_end():
  def steps(_, rows):
    count, _ = jax.lax.while_loop(
        lambda c: jnp.any(c[1] > 0),
        lambda c: (c[0] + 1, c[1] - 1),
        (jnp.int32(0), rows),
    )
    return jnp.broadcast_to(count, rows.shape)

  rows = jnp.arange(8)
  with jax.set_mesh(mesh_lib.make_mesh()):
    counts = jax.jit(
        lambda rows: mesh_lib.shard_over_batch(steps, None, rows, mesh_lib.AXES)
    )(rows)
  np.testing.assert_array_equal(counts, rows)
  np.testing.assert_array_equal(mesh_lib.shard_over_batch(steps, None, rows), 7)


@pytest.mark.parametrize('sizes', ['8', '2,2', 'a,b,c', '8,1,1,1', ''])
def test_texts_that_are_no_sizes_are_refused(sizes):
  with pytest.raises(errors.UserError, match='write the sizes of data, fsdp'):
    mesh_lib.using(sizes)


def test_sizes_are_a_value_that_creates_the_mesh():
  sizes = mesh_lib.MeshSizes(fsdp=2, tensor=2)
  assert sizes == mesh_lib.MeshSizes(data=-1, fsdp=2, tensor=2)
  assert hash(sizes) == hash(mesh_lib.MeshSizes(fsdp=2, tensor=2))
  assert dict(sizes.create().shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  with pytest.raises(errors.UserError, match='mesh.fsdp is 0'):
    mesh_lib.MeshSizes(fsdp=0)


def test_the_batch_may_be_another_axis_than_the_first():
  def function(weight, batched):
    rows, stacked = batched
    seen.append((rows.shape, stacked.shape))
    return weight * rows, weight * stacked

  seen = []
  rows, stacked = jnp.arange(8.0), jnp.arange(24.0).reshape(3, 8)
  run = jax.jit(
      lambda *arrays: mesh_lib.shard_over_batch(
          function, *arrays, batch_axes=(0, 1), out_batch_axes=(0, 1)
      )
  )
  with jax.set_mesh(mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)):
    one, two = run(jnp.float32(3), (rows, stacked))
  np.testing.assert_array_equal(one, 3 * rows)
  np.testing.assert_array_equal(two, 3 * stacked)
  assert seen == [((2,), (3, 2))]


@pytest.mark.parametrize(
    'size, expected',
    [(16, ('data', 'fsdp')), (4, ('data',)), (6, ()), (0, ('data', 'fsdp'))],
)
def test_as_many_axes_are_taken_as_divide_a_size(size, expected):
  sizes = {'data': 4, 'fsdp': 2}
  assert mesh_lib.dividing(size, sizes, ('data', 'fsdp')) == expected
