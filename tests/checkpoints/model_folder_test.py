import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import errors

PARAMS = {'a': {'kernel': jnp.arange(6.0).reshape(2, 3)}, 'b': jnp.ones(4)}
LIKE = jax.eval_shape(lambda: PARAMS)


def save(folder, params=PARAMS, **more):
  model_folder.save_model(folder, {'size': 3}, params, 7, **more)


def test_a_model_comes_back(tmp_path):
  save(tmp_path / 'm', metrics={'loss': 1.0})
  config, params = model_folder.load_model(tmp_path / 'm', LIKE)
  assert config == {'size': 3}
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_relative_paths_work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save('m')
  assert model_folder.load_model('m', LIKE)[0] == {'size': 3}


def test_a_model_is_replaced_whole(tmp_path):
  save(tmp_path / 'm', also=lambda path: (path / 'more').write_text('1'))
  assert (tmp_path / 'm' / 'more').read_text() == '1'
  save(tmp_path / 'm', {'b': jnp.zeros(4)})
  assert not (tmp_path / 'm' / 'more').exists()
  like = jax.eval_shape(lambda: {'b': jnp.zeros(4)})
  _, params = model_folder.load_model(tmp_path / 'm', like)
  np.testing.assert_array_equal(params['b'], np.zeros(4))
  assert [p.name for p in tmp_path.iterdir()] == ['m']


def test_a_failed_save_leaves_the_old_model(tmp_path):
  save(tmp_path / 'm')

  def fail(path):
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    save(tmp_path / 'm', {'b': jnp.zeros(4)}, also=fail)
  _, params = model_folder.load_model(tmp_path / 'm', LIKE)
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


def test_all_mismatches_are_listed_at_once(tmp_path):
  save(tmp_path / 'm')
  like = {
      'a': {'kernel': jax.ShapeDtypeStruct((3, 2), jnp.float32)},
      'c': jax.ShapeDtypeStruct((1,), jnp.float32),
  }
  with pytest.raises(errors.UserError) as raised:
    model_folder.load_model(tmp_path / 'm', like)
  message = str(raised.value)
  assert 'a/kernel is (2, 3) but should be (3, 2)' in message
  assert 'b is left over' in message
  assert 'c is missing' in message


def test_what_is_no_model_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='is not a model folder'):
    model_folder.read_config(tmp_path)
  (tmp_path / 'model.json').write_text('{')
  with pytest.raises(errors.UserError, match='is damaged'):
    model_folder.read_config(tmp_path)
  model_folder.write_config(tmp_path, {'size': 3})
  with pytest.raises(errors.UserError, match='params is not there'):
    model_folder.load_model(tmp_path, LIKE)
