"""What Orbax wrote is read, box by box."""

import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.core import errors

TREE = {
    'params': {
        'a': jnp.arange(12.0).reshape(3, 4),
        'b': jnp.ones(2, 'bfloat16'),
    },
    'step': jnp.int32(3),
}


def save(path, use_ocdbt=True, use_zarr3=False):
  handler = ocp.PyTreeCheckpointHandler(
      use_ocdbt=use_ocdbt, use_zarr3=use_zarr3
  )
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(path, TREE)
  return epath.Path(path)


@pytest.mark.parametrize('use_zarr3', [False, True])
@pytest.mark.parametrize('use_ocdbt', [False, True])
def test_every_layout(tmp_path, use_ocdbt, use_zarr3):
  folder = save(tmp_path / 'x', use_ocdbt, use_zarr3)
  assert orbax_arrays.is_checkpoint(folder)
  tensors = orbax_arrays.read(folder)
  expected = {'params/a', 'params/b', 'step'}
  assert set(tensors) == expected
  inner = orbax_arrays.read(folder, ('params',))
  assert set(inner) == {'a', 'b'}
  for name, array in TREE['params'].items():
    assert inner[name].dtype == array.dtype
    np.testing.assert_array_equal(inner[name].all(), array)
  box = (slice(1, 3), slice(0, 2))
  np.testing.assert_array_equal(inner['a'].read(box), TREE['params']['a'][box])


def test_sharded_arrays_are_read_whole(tmp_path):
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  array = jax.device_put(jnp.arange(32.0).reshape(16, 2), sharding)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'x', {'a': array})
  tensor = orbax_arrays.read(epath.Path(tmp_path / 'x'))['a']
  np.testing.assert_array_equal(tensor.all(), np.arange(32.0).reshape(16, 2))


def test_what_is_not_orbaxs_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='is not a folder of Orbax'):
    orbax_arrays.read(epath.Path(tmp_path))
  for damaged in (
      '{',
      '{}',
      '{"tree_metadata": {"x": 3}}',
      '{"tree_metadata": []}',
      '{"tree_metadata": {"x": {"key_metadata": [], "value_metadata": []}}}',
      '[' * 100_000,
  ):
    (tmp_path / '_METADATA').write_text(damaged)
    with pytest.raises(errors.UserError, match='_METADATA is damaged'):
      orbax_arrays.read(epath.Path(tmp_path))


def test_a_lost_array_is_named(tmp_path):
  folder = save(tmp_path / 'x', use_ocdbt=False)
  (folder / 'params.a').rmtree()
  with pytest.raises(errors.UserError, match='params/a in .* cannot be read'):
    orbax_arrays.read(folder)


def test_an_array_elsewhere_is_refused(tmp_path):
  entry = {'key_metadata': [{'key': '../../a'}], 'value_metadata': {}}
  text = json.dumps({'tree_metadata': {'x': entry}})
  (tmp_path / '_METADATA').write_text(text)
  with pytest.raises(errors.UserError, match=r'\.\./\.\./a in .* cannot be'):
    orbax_arrays.read(epath.Path(tmp_path))


def test_a_lost_chunk_is_an_error_and_not_zeros(tmp_path):
  folder = save(tmp_path / 'x', use_ocdbt=False)
  (folder / 'params.a' / '0.0').unlink()
  tensor = orbax_arrays.read(folder, ('params',))['a']
  with pytest.raises(
      errors.UserError, match='a in .* cannot be read: .*missing'
  ):
    tensor.all()


def test_buckets_have_their_own_driver():
  store = orbax_arrays.array_store(epath.Path('gs://bucket/a/b'), 'c')
  assert store == {'driver': 'gcs', 'bucket': 'bucket', 'path': 'a/b/c/'}
