"""Models are loaded from every kind of folder, onto any mesh."""

import dataclasses

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
from distillspec_jax.core import types
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from tests import tiny

CONFIG = tiny.config(tiny.BYTES)
TOKENS = np.arange(2, 14).reshape(2, 6)


@pytest.fixture(name='params', scope='module')
def _params():
  return tiny.random_params(CONFIG)


def flat(params):
  return {
      path: tensors_lib.from_array(x)
      for path, x in tensors_lib.flatten(params).items()
  }


def save_own(folder, params, config=CONFIG):
  model = model_lib.Model(params, tiny.network(config))
  tiny.save(folder, model, 'bytes', step=3)


def save_run(folder, params):
  save_own(folder / 'best', params)


def save_hugging_face(folder, params):
  folder.mkdir()
  hugging_face.write(epath.Path(folder), CONFIG, flat(params))


def save_t5x(folder, params):
  t5x.write(epath.Path(folder), flat(params), 5)


KINDS = [save_own, save_run, save_hugging_face, save_t5x]


def assert_same(loaded, params):
  leaves = jax.tree.leaves(loaded.model), jax.tree.leaves(params)
  for a, b in zip(*leaves, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('save', KINDS)
def test_every_kind_of_folder(tmp_path, params, save):
  save(tmp_path / 'm', params)
  loaded = loading.load(tmp_path / 'm')
  assert loaded.model.network == tiny.network(CONFIG)
  assert jax.tree.structure(loaded.model.params) == jax.tree.structure(params)
  assert_same(loaded, params)
  assert (loaded.vocabulary is None) == (save in KINDS[2:])
  assert loaded.name == str(tmp_path / 'm')


def test_models_inside_a_folder_are_named(tmp_path, params):
  (tmp_path / 'study' / 'seed_0').mkdir(parents=True)
  with pytest.raises(errors.UserError, match=r'\(t5x\)\.$'):
    loading.load(tmp_path / 'study')
  save_run(tmp_path / 'study' / 'target', params)
  save_hugging_face(tmp_path / 'study' / 'seed_0' / 'draft', params)
  with pytest.raises(
      errors.UserError, match='mean .*study/target or .*study/seed_0/draft?'
  ):
    loading.load(tmp_path / 'study')


@pytest.mark.parametrize('save', KINDS)
def test_parameters_are_laid_out_on_the_mesh(tmp_path, params, save):
  save(tmp_path / 'm', params)
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  loaded = loading.load(tmp_path / 'm', mesh=mesh)
  assert_same(loaded, params)
  shardings = [x.sharding for x in jax.tree.leaves(loaded.model)]
  assert shardings == jax.tree.leaves(loaded.model.network.shardings(mesh))
  kernel = loaded.model.params['encoder']['layers_0']['mlp']['wo']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_the_current_mesh_and_a_layout_are_taken(tmp_path, params):
  save_own(tmp_path / 'm', params)
  layout = layouts.rules('replicated')
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    loaded = loading.load(tmp_path / 'm', layout=layout)
  assert loaded.model.network == transformer.Transformer(CONFIG, layout)
  assert all(
      x.sharding.is_fully_replicated and len(x.sharding.device_set) == 8
      for x in jax.tree.leaves(loaded.model)
  )


def test_a_step_of_a_run(tmp_path, params):
  save_run(tmp_path / 'run', params)
  model_folder.write_config(tmp_path / 'run', CONFIG.to_dict())
  other = jax.tree.map(lambda x: x + 1, params)
  with store.Store(tmp_path / 'run' / 'checkpoints') as checkpoints:
    checkpoints.save(20, {'params': other, 'step': jnp.int32(20)}, {})
  assert_same(loading.load(tmp_path / 'run', step=20), other)
  assert_same(loading.load(tmp_path / 'run'), params)
  with pytest.raises(errors.UserError, match='of step 7; it has 20'):
    loading.load(tmp_path / 'run', step=7)


def test_a_step_of_t5x(tmp_path, params):
  t5x.write(epath.Path(tmp_path), flat(params), 5)
  other = jax.tree.map(lambda x: x + 1, params)
  t5x.write(epath.Path(tmp_path), flat(other), 10)
  assert_same(loading.load(tmp_path, step=5), params)
  assert_same(loading.load(tmp_path), other)
  assert_same(loading.load(tmp_path / 'checkpoint_5'), params)


def test_hugging_face_has_no_steps(tmp_path, params):
  save_hugging_face(tmp_path / 'm', params)
  with pytest.raises(
      errors.UserError, match='step is 3, but .*, which has no ste'
  ):
    loading.load(tmp_path / 'm', step=3)


def test_dtypes_of_parameters_and_of_computing(tmp_path, params):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  save_own(tmp_path / 'm', half)
  loaded = loading.load(tmp_path / 'm')
  assert loaded.config.dtype == 'float32'
  assert {x.dtype for x in jax.tree.leaves(loaded.model)} == {
      jnp.dtype('bfloat16')
  }
  wide = loading.load(tmp_path / 'm', param_dtype='float32')
  np.testing.assert_array_equal(  # computed in float32 either way
      loaded.logits(TOKENS, TOKENS), wide.logits(TOKENS, TOKENS)
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
      errors.UserError, match=f"param_dtype is '{dtype}'; .* None, 'float32', "
  ):
    loading.load(tmp_path / 'm', param_dtype=dtype)
  with pytest.raises(errors.UserError, match=f"dtype is '{dtype}'"):
    loading.load(tmp_path / 'm', dtype=dtype)


def test_what_to_compute_in_is_as_saved(tmp_path, params):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  save_own(tmp_path / 'm', params, config)
  assert loading.load(tmp_path / 'm').config.dtype == 'bfloat16'
  assert loading.load(tmp_path / 'm', dtype='float32').config == CONFIG


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_mesh_and_a_dtype_at_once(tmp_path, params, dtype):
  save_hugging_face(tmp_path / 'm', params)
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  loaded = loading.load(tmp_path / 'm', mesh=mesh, param_dtype=dtype)
  shardings = jax.tree.leaves(loaded.model.network.shardings(mesh))
  for leaf, sharding in zip(jax.tree.leaves(loaded.model), shardings):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  assert_same(loaded, jax.tree.map(lambda x: x.astype(dtype), params))


def test_a_repository_of_the_hubs_cache(tmp_path, params, monkeypatch):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.chdir(tmp_path)
  repository = tmp_path / 'hub' / 'models--someone--tiny'
  (repository / 'refs').mkdir(parents=True)
  (repository / 'refs' / 'main').write_text('abc')
  (repository / 'snapshots').mkdir()
  save_hugging_face(repository / 'snapshots' / 'abc', params)
  loaded = loading.load('someone/tiny')
  assert loaded.name == 'someone/tiny'
  assert_same(loaded, params)


def test_scanned_layers_stay_scanned(tmp_path):
  model = tiny.model(tiny.BYTES, scan_layers=True)
  save_own(tmp_path / 'm', model.params, model.config)
  loaded = loading.load(tmp_path / 'm')
  assert loaded.config.scan_layers
  assert_same(loaded, model.params)


@pytest.mark.parametrize('scan', [True, False])
def test_layers_are_scanned_or_unrolled_on_demand(tmp_path, scan):
  model = tiny.model(tiny.BYTES, scan_layers=not scan, num_decoder_layers=2)
  save_own(tmp_path / 'm', model.params, model.config)
  changed = loading.load(tmp_path / 'm', scan_layers=scan)
  assert changed.config == dataclasses.replace(model.config, scan_layers=scan)
  texts = np.array([[5, 7, 3]]), np.array([[0, 6]])
  np.testing.assert_allclose(
      changed.logits(*texts), loaded(model).logits(*texts), atol=1e-5
  )
  # Quantised and on a mesh, likewise.
  mesh = mesh_lib.make_mesh(data=4, fsdp=2)
  placed = loading.load(
      tmp_path / 'm', scan_layers=scan, weights='int8', mesh=mesh
  ).model
  trees = placed.params, placed.network.abstract()
  for x, expected, sharding in zip(
      *map(jax.tree.leaves, (*trees, placed.network.shardings(mesh))),
      strict=True,
  ):
    assert (x.shape, x.dtype) == (expected.shape, expected.dtype)
    assert x.sharding == sharding


def test_a_vocabulary_can_be_given(tmp_path, params):
  save_t5x(tmp_path / 'm', params)
  loaded = loading.load(tmp_path / 'm', vocabulary='bytes')
  assert loaded.vocabulary.encode('ab') == [100, 101]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path, params):
  save_own(tmp_path / 'm', {**params, 'more': jnp.ones(2)})
  (tmp_path / 'm' / 'checksums.json').unlink()  # model.json is edited
  config = dataclasses.replace(CONFIG, mlp_dim=7)
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
  model = loading.load(tmp_path / 'm', allow_nonfinite=True).model
  assert np.isnan(model.params['token_embedder']['embedding']).all()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_non_finite_values_are_seen_in_every_dtype_of_theirs(
    tmp_path, params, dtype, value
):
  scale = params['decoder']['decoder_norm']['scale'].at[2].set(value)
  decoder = {**params['decoder'], 'decoder_norm': {'scale': scale}}
  changed = jax.tree.map(
      lambda x: x.astype(dtype), {**params, 'decoder': decoder}
  )
  save_hugging_face(tmp_path / 'm', changed)
  with pytest.raises(
      errors.UserError, match=r'in decoder/decoder_norm/scale \(1\)\. The'
  ):
    loading.load(tmp_path / 'm')
  model = loading.load(tmp_path / 'm', allow_nonfinite=True).model
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
  (tmp_path / 'm' / 'checksums.json').unlink()  # model.json is edited
  model_folder.write_config(tmp_path / 'm', {**CONFIG.to_dict(), **changes})
  with pytest.raises(errors.UserError, match=message):
    loading.load(tmp_path / 'm')


def test_a_configuration_that_lacks_something_is_named(tmp_path, params):
  save_own(tmp_path / 'm', params)
  config = CONFIG.to_dict()
  del config['emb_dim'], config['num_heads']
  (tmp_path / 'm' / 'checksums.json').unlink()  # model.json is edited
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


def test_what_was_looked_for_is_listed(tmp_path):
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
  monkeypatch.setattr(path, 'read_bytes', refuse)
  with pytest.raises(errors.UserError, match='config.json .*: Permission den'):
    loading.load(tmp_path / 'm')


def test_a_given_vocabulary_that_is_too_large_is_refused(tmp_path):
  tiny.save(tmp_path / 'm', tiny.model(40))
  with pytest.raises(errors.UserError, match='bytes has 259 pieces.*only 40'):
    loading.load(tmp_path / 'm', vocabulary='bytes')


# Logits of what was loaded.


def loaded(model, name='m'):
  return loading.Loaded(model, name=name)


def test_padding_of_the_inputs_is_not_read():
  whole = loaded(tiny.model())
  inputs = np.array([[5, 7, 0, 0], [3, 4, 9, 8]])
  decoder_inputs = np.array([[0, 6, 2], [0, 9, 9]])
  logits = whole.logits(inputs, decoder_inputs)
  assert logits.shape == (2, 3, tiny.V) and logits.dtype == jnp.float32
  shorter = whole.logits(inputs[:1, :2], decoder_inputs[:1])
  np.testing.assert_allclose(logits[:1], shorter, atol=1e-5)
  # Unless a mask says that 0 is a token like any other.
  masked = whole.logits(inputs, decoder_inputs, inputs_mask=inputs > -1)
  assert np.abs(masked[0] - logits[0]).max() > 1e-3
  np.testing.assert_allclose(masked[1], logits[1], atol=1e-5)


def test_a_draft_that_shares_an_encoder_is_given_its_output():
  model = tiny.model()
  draft = loaded(tiny.sharing(model))
  inputs, decoder_inputs = np.array([[5, 7, 3]]), np.array([[0, 6]])
  encoded = model.encode(types.Prompt(inputs, np.ones_like(inputs)))
  np.testing.assert_allclose(
      draft.logits(inputs, decoder_inputs, encoded=encoded),
      loaded(model).logits(inputs, decoder_inputs),
      atol=1e-5,
  )
  with pytest.raises(errors.UserError, match='it cannot be used alone'):
    draft.logits(inputs, decoder_inputs)


# Pairs.

ENCODER_DECODER = tiny.model()
DECODER_ONLY = tiny.model(num_encoder_layers=0)
SHARING = tiny.sharing(ENCODER_DECODER)


@pytest.mark.parametrize(
    'target, draft, message',
    [
        (SHARING, SHARING, 'The target t has no encoder of its own'),
        (DECODER_ONLY, SHARING, 'but the target t is decoder-only'),
        (
            tiny.model(emb_dim=8),
            SHARING,
            'output of width 16, but that of the target t is 8 wide',
        ),
        (ENCODER_DECODER, DECODER_ONLY, 'One of t and d is decoder-only'),
        (
            ENCODER_DECODER,
            tiny.model(129),
            'The target t has 40 tokens and the draft d has 129',
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused(target, draft, message):
  with pytest.raises(errors.UserError, match=message):
    loading.check_pair(loaded(target, 't'), loaded(draft, 'd'))


def test_pairs_that_fit_are_accepted():
  for draft in (ENCODER_DECODER, SHARING):
    loading.check_pair(loaded(ENCODER_DECODER), loaded(draft))
  loading.check_pair(loaded(DECODER_ONLY), loaded(DECODER_ONLY))


@pytest.mark.parametrize('sizes', [(8, 5), (5, 8), (40, 128)])
def test_rows_that_may_be_tokens_are_not_cut(sizes):
  target, draft = map(tiny.model, sizes)
  with pytest.raises(errors.UserError, match='neither has a vocabulary that'):
    loading.check_pair(loaded(target), loaded(draft))


@pytest.mark.parametrize(
    'pieces, sizes, is_padding',
    [
        (259, (259, 384), True),
        (259, (600, 300), True),
        (269, (384, 260), False),  # the draft's vocabulary has no sentinels
        (269, (269, 384), True),
    ],
)
def test_only_rows_beyond_the_vocabulary_are_padding(pieces, sizes, is_padding):
  sentinels = [f'<extra_id_{i}>' for i in range(pieces - 259)]
  vocabulary = vocabulary_kinds.Bytes(sentinels)
  target, draft = map(tiny.model, sizes)
  for known in (vocabulary_kinds.Bytes(), None, vocabulary):
    pair = (
        tiny.loaded(target, 't', vocabulary),
        tiny.loaded(draft, 'd', known),
    )
    for each in (pair, pair[::-1]):
      if is_padding:
        loading.check_pair(*each)
      else:
        with pytest.raises(errors.UserError, match='vocabulary has 269 tokens'):
          loading.check_pair(*each)
