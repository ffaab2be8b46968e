"""A model folder comes back as it was, whole or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors

PARAMS = {'a': {'kernel': jnp.arange(6.0).reshape(2, 3)}, 'b': jnp.ones(4)}


def save(folder, params=PARAMS, config=None, **more):
  model_folder.save_model(folder, config or {'size': 3}, params, 7, **more)


def assert_holds(folder, params):
  found = model_folder.read(folder).tensors
  expected = tensors_lib.flatten(params)
  assert set(found) == set(expected)
  for path, array in expected.items():
    assert found[path].dtype == array.dtype
    np.testing.assert_array_equal(found[path].all(), array)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_model_comes_back(tmp_path, dtype):
  params = {'a': {'kernel': PARAMS['a']['kernel'].astype(dtype)}}
  save(tmp_path / 'm', params, metrics={'loss': 1.0})
  found = model_folder.read(tmp_path / 'm')
  assert found.config == {'size': 3} and found.step == 7
  assert_holds(tmp_path / 'm', params)


def test_relative_paths_work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save('m')
  assert_holds('m', PARAMS)


def test_a_runs_best_is_read(tmp_path):
  save(tmp_path / 'run' / 'best')
  assert_holds(tmp_path / 'run', PARAMS)


def test_a_model_is_replaced_whole(tmp_path):
  save(tmp_path / 'm', also=lambda path: (path / 'more').write_text('1'))
  assert (tmp_path / 'm' / 'more').read_text() == '1'
  save(tmp_path / 'm', {'b': jnp.zeros(4)})
  assert not (tmp_path / 'm' / 'more').exists()
  assert_holds(tmp_path / 'm', {'b': jnp.zeros(4)})
  assert [p.name for p in tmp_path.iterdir()] == ['m']


def test_a_failed_save_leaves_the_old_model(tmp_path):
  save(tmp_path / 'm')

  def fail(path):
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    save(tmp_path / 'm', {'b': jnp.zeros(4)}, also=fail)
  assert_holds(tmp_path / 'm', PARAMS)


def test_what_is_no_model_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='is not a model folder'):
    model_folder.read(tmp_path)
  for damaged in ('{', '[]', '{"config": 3}', '[' * 100_000):
    (tmp_path / 'model.json').write_text(damaged)
    with pytest.raises(errors.UserError, match='is damaged'):
      model_folder.read_config(tmp_path)
  model_folder.write_config(tmp_path, {'size': 3})
  with pytest.raises(errors.UserError, match='params is not there'):
    model_folder.read(tmp_path)


def test_a_step_that_is_not_there_is_named(tmp_path):
  model_folder.write_config(tmp_path, {'size': 3})
  for step in (20, 3):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  with pytest.raises(
      errors.UserError, match='no checkpoint of step 4; it has 3, 20'
  ):
    model_folder.read(tmp_path, step=4)


def test_scanned_layers_are_taken_apart():
  stacked = np.arange(12.0).reshape(3, 2, 2)
  checkpoint = tensors_lib.Checkpoint(
      {'scan_layers': True},
      {
          'decoder/layers/wo/kernel': tensors_lib.from_array(stacked),
          'decoder/decoder_norm/scale': tensors_lib.from_array(np.ones(2)),
      },
  )
  found = model_folder.unscanned(checkpoint)
  assert found.config == {'scan_layers': False}
  assert set(found.tensors) == {
      *(f'decoder/layers_{i}/wo/kernel' for i in range(3)),
      'decoder/decoder_norm/scale',
  }
  for i in range(3):
    tensor = found.tensors[f'decoder/layers_{i}/wo/kernel']
    np.testing.assert_array_equal(tensor.all(), stacked[i])
  assert model_folder.unscanned(found) is found
