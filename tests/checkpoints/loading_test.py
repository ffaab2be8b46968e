"""Models are loaded from every kind of folder, onto any mesh."""

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib

CONFIG = config_lib.published('test', vocab_size=384)
TOKENS = np.arange(2, 14).reshape(2, 6)


@pytest.fixture(name='params', scope='module')
def _params():
  return transformer_lib.Transformer(CONFIG).init(jax.random.key(0))


def flat(params):
  return {
      path: tensors_lib.from_array(x)
      for path, x in tensors_lib.flatten(params).items()
  }


def save_own(folder, params, config=CONFIG):
  model_folder.save_model(
      folder,
      config.to_dict(),
      params,
      step=3,
      also=lambda path: vocabularies.save(vocabularies.load('bytes'), path),
  )


def save_run(folder, params):
  save_own(folder / 'best', params)


def save_hugging_face(folder, params):
  folder.mkdir()
  hugging_face.write(epath.Path(folder), CONFIG, flat(params))


def save_t5x(folder, params):
  t5x.write(epath.Path(folder), flat(params), 5)


KINDS = [save_own, save_run, save_hugging_face, save_t5x]


def assert_same(found, params):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('save', KINDS)
def test_every_kind_of_folder(tmp_path, params, save):
  save(tmp_path / 'm', params)
  model = loading.load(tmp_path / 'm')
  assert jax.tree.structure(model.params) == jax.tree.structure(params)
  assert_same(model.params, params)
  expected = loading.Model(transformer_lib.Transformer(CONFIG), params)
  np.testing.assert_array_equal(
      model.logits(TOKENS, TOKENS), expected.logits(TOKENS, TOKENS)
  )
  assert (model.vocabulary is None) == (save in KINDS[2:])


@pytest.mark.parametrize('save', KINDS)
def test_parameters_are_laid_out_on_the_mesh(tmp_path, params, save):
  save(tmp_path / 'm', params)
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  model = loading.load(tmp_path / 'm', mesh=mesh)
  assert_same(model.params, params)
  layout = model.transformer.shardings(mesh)
  found = jax.tree.map(lambda x: x.sharding, model.params)
  assert jax.tree.leaves(found) == jax.tree.leaves(layout)
  kernel = model.params['encoder']['layers_0']['mlp']['wo']['kernel']
  whole = int(np.prod(kernel.shape))
  assert kernel.addressable_shards[0].data.size == whole // 4


def test_a_step_of_a_run(tmp_path, params):
  save_run(tmp_path / 'run', params)
  model_folder.write_config(tmp_path / 'run', CONFIG.to_dict())
  other = jax.tree.map(lambda x: x + 1, params)
  with store.Store(tmp_path / 'run' / 'checkpoints') as checkpoints:
    checkpoints.save(20, {'params': other, 'step': jnp.int32(20)}, {})
  assert_same(loading.load(tmp_path / 'run', step=20).params, other)
  assert_same(loading.load(tmp_path / 'run').params, params)
  with pytest.raises(errors.UserError, match='of step 7; it has 20'):
    loading.load(tmp_path / 'run', step=7)


def test_a_step_of_t5x(tmp_path, params):
  t5x.write(epath.Path(tmp_path), flat(params), 5)
  other = jax.tree.map(lambda x: x + 1, params)
  t5x.write(epath.Path(tmp_path), flat(other), 10)
  assert_same(loading.load(tmp_path, step=5).params, params)
  assert_same(loading.load(tmp_path).params, other)
  assert_same(loading.load(tmp_path / 'checkpoint_5').params, params)


def test_hugging_face_has_no_steps(tmp_path, params):
  save_hugging_face(tmp_path / 'm', params)
  with pytest.raises(errors.UserError, match='has no steps, but step is 3'):
    loading.load(tmp_path / 'm', step=3)


def test_dtypes_of_parameters_and_of_computing(tmp_path, params):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  save_own(tmp_path / 'm', half)
  model = loading.load(tmp_path / 'm')
  assert model.config.dtype == 'float32'
  assert {x.dtype for x in jax.tree.leaves(model.params)} == {
      jnp.dtype('bfloat16')
  }
  wide = loading.load(tmp_path / 'm', param_dtype='float32')
  np.testing.assert_array_equal(  # computed in float32 either way
      model.logits(TOKENS, TOKENS), wide.logits(TOKENS, TOKENS)
  )
  coarse = loading.load(tmp_path / 'm', dtype='bfloat16')
  assert coarse.config.dtype == 'bfloat16'
  apart = np.abs(
      coarse.logits(TOKENS, TOKENS) - wide.logits(TOKENS, TOKENS)
  ).max()
  assert 0.0 < apart < 0.1


@pytest.mark.parametrize('dtype', ['int8', 'float64', 'float16', 'x'])
def test_other_dtypes_of_parameters_are_refused(tmp_path, params, dtype):
  save_own(tmp_path / 'm', params)
  with pytest.raises(
      errors.UserError, match=f"param_dtype is '{dtype}'; it must be 'float32'"
  ):
    loading.load(tmp_path / 'm', param_dtype=dtype)
  with pytest.raises(errors.UserError, match=f"dtype is '{dtype}'"):
    loading.load(tmp_path / 'm', dtype=dtype)


def test_what_to_compute_in_is_as_saved(tmp_path, params):
  config = config_lib.published('test', vocab_size=384, dtype='bfloat16')
  save_own(tmp_path / 'm', params, config)
  assert loading.load(tmp_path / 'm').config.dtype == 'bfloat16'
  model = loading.load(tmp_path / 'm', dtype='float32')
  assert model.config == CONFIG


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_mesh_and_a_dtype_at_once(tmp_path, params, dtype):
  save_hugging_face(tmp_path / 'm', params)
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  model = loading.load(tmp_path / 'm', mesh=mesh, param_dtype=dtype)
  layout = jax.tree.leaves(model.transformer.shardings(mesh))
  for found, sharding in zip(jax.tree.leaves(model.params), layout):
    assert found.sharding.is_equivalent_to(sharding, found.ndim)
  assert_same(model.params, jax.tree.map(lambda x: x.astype(dtype), params))


def test_a_repository_of_the_hubs_cache(tmp_path, params, monkeypatch):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.chdir(tmp_path)
  repository = tmp_path / 'hub' / 'models--someone--tiny'
  (repository / 'refs').mkdir(parents=True)
  (repository / 'refs' / 'main').write_text('abc')
  (repository / 'snapshots').mkdir()
  save_hugging_face(repository / 'snapshots' / 'abc', params)
  model = loading.load('someone/tiny')
  assert model.name == 'someone/tiny'
  assert_same(model.params, params)


def test_scanned_layers_stay_scanned(tmp_path):
  config = config_lib.published('test', vocab_size=384, scan_layers=True)
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  save_own(tmp_path / 'm', params, config)
  model = loading.load(tmp_path / 'm')
  assert model.config.scan_layers
  assert_same(model.params, params)


def test_a_vocabulary_can_be_given(tmp_path, params):
  save_t5x(tmp_path / 'm', params)
  model = loading.load(tmp_path / 'm', vocabulary='bytes')
  assert model.vocabulary.encode('ab') == [100, 101]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path, params):
  save_own(tmp_path / 'm', {**params, 'more': jnp.ones(2)})
  config = config_lib.published('test', vocab_size=384, mlp_dim=7)
  model_folder.write_config(tmp_path / 'm', config.to_dict())
  with pytest.raises(errors.UserError) as raised:
    loading.load(tmp_path / 'm')
  message = str(raised.value)
  assert 'more is left over' in message
  assert 'decoder/layers_0/mlp/wo/kernel is (32, 16) but should be (7, 16)' in (
      message
  )


@pytest.mark.parametrize('save', KINDS)
def test_nan_is_refused_with_its_path(tmp_path, params, save):
  params = {
      **params,
      'token_embedder': {'embedding': jnp.full((384, 16), jnp.nan)},
  }
  save(tmp_path / 'm', params)
  with pytest.raises(errors.UserError, match='m: NaN or .* token_embedder'):
    loading.load(tmp_path / 'm')
  model = loading.load(tmp_path / 'm', allow_nonfinite=True)
  assert np.isnan(model.params['token_embedder']['embedding']).all()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_not_finite_in_any_dtype_of_theirs(tmp_path, params, dtype, value):
  scale = params['decoder']['decoder_norm']['scale'].at[2].set(value)
  decoder = {**params['decoder'], 'decoder_norm': {'scale': scale}}
  spoilt = jax.tree.map(
      lambda x: x.astype(dtype), {**params, 'decoder': decoder}
  )
  save_hugging_face(tmp_path / 'm', spoilt)
  with pytest.raises(
      errors.UserError, match=r'in decoder/decoder_norm/scale \(1\)\. The'
  ):
    loading.load(tmp_path / 'm')
  model = loading.load(tmp_path / 'm', allow_nonfinite=True)
  assert model.params['decoder']['decoder_norm']['scale'].dtype == dtype


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'emb_dim': None}, 'T5Config.emb_dim is None; it must be of type int'),
        ({'norm_epsilon': 'x'}, "norm_epsilon is 'x'; it must be of type"),
        ({'mlp_activations': 3}, 'mlp_activations is 3'),
        ({'more': 3}, r"unknown entries \['more'\]"),
    ],
)
def test_a_configuration_that_is_damaged_is_named(
    tmp_path, params, changes, message
):
  save_own(tmp_path / 'm', params)
  model_folder.write_config(tmp_path / 'm', {**CONFIG.to_dict(), **changes})
  with pytest.raises(errors.UserError, match=message):
    loading.load(tmp_path / 'm')


def test_a_configuration_that_lacks_something_is_named(tmp_path, params):
  save_own(tmp_path / 'm', params)
  config = CONFIG.to_dict()
  del config['emb_dim'], config['num_heads']
  model_folder.write_config(tmp_path / 'm', config)
  with pytest.raises(errors.UserError, match=r"lacks \['emb_dim', 'num_heads'"):
    loading.load(tmp_path / 'm')


def test_a_file_is_not_a_folder(tmp_path, params):
  save_hugging_face(tmp_path / 'm', params)
  with pytest.raises(errors.UserError, match='is a file; name the folder'):
    loading.load(tmp_path / 'm' / 'model.safetensors')


def test_pickles_are_refused_with_the_way_out(tmp_path, params):
  save_hugging_face(tmp_path / 'm', params)
  (tmp_path / 'm' / 'model.safetensors').rename(
      tmp_path / 'm' / 'pytorch_model.bin'
  )
  with pytest.raises(errors.UserError, match='has only pytorch_model.bin, and'):
    loading.load(tmp_path / 'm')


def test_what_was_looked_for_is_said(tmp_path):
  with pytest.raises(errors.UserError) as raised:
    loading.load(tmp_path)
  message = str(raised.value)
  for name in ('model.json', 'config.json', 'model.safetensors', 'checkpoint_'):
    assert name in message


def test_a_folder_without_rights_is_named(tmp_path, params, monkeypatch):
  save_hugging_face(tmp_path / 'm', params)

  def refuse(self, *args, **kwargs):
    raise PermissionError(13, 'Permission denied', str(self))

  path = type(epath.Path(tmp_path))
  monkeypatch.setattr(path, 'read_text', refuse)
  with pytest.raises(PermissionError, match='config.json'):
    loading.load(tmp_path / 'm')


def test_a_given_vocabulary_that_is_too_large_is_refused(tmp_path):
  config = config_lib.published('test', vocab_size=40)
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  model_folder.save_model(tmp_path / 'm', config.to_dict(), params, 0)
  with pytest.raises(errors.UserError, match='bytes has 259 pieces.*only 40'):
    loading.load(tmp_path / 'm', vocabulary='bytes')
