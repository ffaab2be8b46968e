"""A model folder comes back as it was, whole or not at all."""

from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from tests.checkpoints.models import CONFIG

PARAMS = {'a': {'kernel': jnp.arange(6.0).reshape(2, 3)}, 'b': jnp.ones(4)}


def save(folder, params=PARAMS, **more):
  model_folder.save_model(folder, CONFIG.to_dict(), params, 7, **more)


def assert_holds(folder, params):
  tensors = model_folder.read(folder).tensors
  expected = tensors_lib.flatten(params)
  assert set(tensors) == set(expected)
  for path, array in expected.items():
    assert tensors[path].dtype == array.dtype
    np.testing.assert_array_equal(tensors[path].all(), array)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_model_comes_back(tmp_path, dtype):
  params = {'a': {'kernel': PARAMS['a']['kernel'].astype(dtype)}}
  save(tmp_path / 'm', params, metrics={'loss': 1.0})
  checkpoint = model_folder.read(tmp_path / 'm')
  assert checkpoint.config == CONFIG and checkpoint.step == 7
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


def test_a_model_that_was_being_replaced_is_put_back(tmp_path):
  save(tmp_path / 'm')
  (tmp_path / 'm').rename(tmp_path / '.m.old')  # a process was killed here
  model_folder.check_whole(tmp_path / 'm')
  assert_holds(tmp_path / 'm', PARAMS)


def test_every_file_and_array_is_compared_with_its_checksum(tmp_path):
  vocabulary = lambda path: (path / 'vocabulary.json').write_text('{}')
  save(tmp_path / 'm', {'a': jnp.arange(999.0)}, also=vocabulary)
  model_folder.check_whole(tmp_path / 'm')
  files = [p for p in (tmp_path / 'm').rglob('*') if p.is_file()]
  refused = set()
  for path in files:
    raw = path.read_bytes()
    for place in range(0, len(raw), max(len(raw) // 6, 1)):
      changed = bytearray(raw)
      changed[place] ^= 0x10
      path.write_bytes(changed)
      try:
        model_folder.check_whole(tmp_path / 'm')
      except errors.UserError:
        refused.add(path.name)
    path.write_bytes(raw)
  model_folder.check_whole(tmp_path / 'm')
  assert {'model.json', 'vocabulary.json', 'checksums.json'} < refused
  largest = max(files, key=lambda path: path.stat().st_size)
  assert largest.name in refused  # that of the arrays


def test_a_model_is_identified_by_its_content(tmp_path):
  for name, params in (('a', PARAMS), ('b', PARAMS), ('c', {'b': jnp.ones(3)})):
    save(tmp_path / name, params)
  a, b, c = (model_folder.identity(tmp_path / name) for name in 'abc')
  assert a == b != c
  save(tmp_path / 'run' / 'best')
  assert model_folder.identity(tmp_path / 'run') == a
  assert model_folder.identity(tmp_path) is None
  assert model_folder.identity(None) is None


def test_what_is_no_model_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match='is not a model folder'):
    model_folder.read(tmp_path)
  for damaged in ('{', '[]', '{"config": 3}', '[' * 100_000):
    (tmp_path / 'model.json').write_text(damaged)
    with pytest.raises(errors.UserError, match='is damaged'):
      model_folder.read_config(tmp_path)
  model_folder.write_config(tmp_path, CONFIG.to_dict())
  with pytest.raises(errors.UserError, match='params is not there'):
    model_folder.read(tmp_path)


def test_a_step_that_is_not_there_is_named(tmp_path):
  model_folder.write_config(tmp_path, CONFIG.to_dict())
  for step in (20, 3):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  with pytest.raises(
      errors.UserError, match='no checkpoint of step 4; it has 3, 20'
  ):
    model_folder.read(tmp_path, step=4)


def test_a_configuration_that_does_not_hold_is_named_with_its_file(tmp_path):
  save(tmp_path)
  (tmp_path / 'checksums.json').unlink()  # model.json is edited
  model_folder.write_config(tmp_path, {**CONFIG.to_dict(), 'num_heads': 0})
  with pytest.raises(errors.UserError, match=r'model\.json: .*num_heads is 0'):
    model_folder.read(tmp_path)


def test_the_identity_of_a_model_in_a_bucket_out_of_reach(monkeypatch):
  def refuse(*args):
    raise RuntimeError('no network')

  monkeypatch.setattr(type(epath.Path('gs://bucket')), 'exists', refuse)
  with pytest.raises(
      errors.UserError, match='gs://bucket/m cannot be read: no'
  ):
    model_folder.identity('gs://bucket/m')
