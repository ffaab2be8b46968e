"""Hugging Face folders: every kind out and in, and all that can be wrong."""

import dataclasses
import json

from etils import epath
import ml_dtypes
import numpy as np
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import safetensors
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from tests.checkpoints import models

CONFIG = dataclasses.replace(
    models.CONFIG, num_encoder_layers=2, num_decoder_layers=1,
    relative_max_distance=20, dropout_rate=0.1,
)  # fmt: skip


def save(folder, dtype=np.float32, shard_bytes=10**9, **changes):
  config = dataclasses.replace(CONFIG, **changes)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = models.as_tensors(models.random_arrays(config, dtype))
  hugging_face.write(epath.Path(folder), config, tensors, shard_bytes)
  return config, tensors


def change(path, **values):
  """Sets entries of a JSON file; None removes them."""
  edited = {**json.loads(path.read_text()), **values}
  kept = {name: value for name, value in edited.items() if value is not None}
  path.write_text(json.dumps(kept))


def read(folder):
  return hugging_face.read(epath.Path(folder))


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'mlp_activations': ('relu',)},
        {'mlp_activations': ('gelu',)},
        {'mlp_activations': ('gelu_exact',)},
        {'mlp_activations': ('relu', 'linear')},
        {'mlp_activations': ('silu', 'linear')},
        {'mlp_activations': ('linear',)},
        {'mlp_activations': ('linear', 'linear')},
        {'logits_via_embedding': True, 'scale_logits': True},
        {'logits_via_embedding': True},
        {'scale_logits': True},
        {'relative_bias_per_layer': True},
        {'relative_bias_per_layer': True, 'scale_logits': True},
        {
            'relative_bias_per_layer': True,
            'logits_via_embedding': True,
            'scale_logits': True,
        },
        {'norm_epsilon': 1e-3, 'relative_buckets': 4},
        {'num_encoder_layers': 1, 'num_decoder_layers': 3},
        {'num_encoder_layers': 1, 'num_decoder_layers': 1},
        {'vocab_size': 17, 'num_heads': 3, 'head_dim': 5},
    ],
)
def test_every_kind_comes_back(tmp_path, changes):
  config, tensors = save(tmp_path, **changes)
  checkpoint = read(tmp_path)
  assert checkpoint.config == config
  assert set(checkpoint.tensors) == set(tensors)
  for path, tensor in tensors.items():
    np.testing.assert_array_equal(checkpoint.tensors[path].all(), tensor.all())


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shard_bytes', [10**9, 500, 1])
def test_shards_come_back_byte_for_byte(tmp_path, dtype, shard_bytes):
  _, tensors = save(tmp_path, dtype, shard_bytes)
  again = read(tmp_path).tensors
  for path, tensor in tensors.items():
    assert again[path].dtype == dtype
    assert again[path].all().tobytes() == tensor.all().tobytes()
  name = np.dtype(dtype).name
  assert (
      json.loads((tmp_path / 'config.json').read_text())['torch_dtype'] == name
  )
  files = sorted(tmp_path.glob('*.safetensors'))
  if shard_bytes == 10**9:
    assert [file.name for file in files] == ['model.safetensors']
    return
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  assert set(index['weight_map'].values()) == {file.name for file in files}
  assert files[0].name == f'model-00001-of-{len(files):05}.safetensors'
  total = sum(t.nbytes for t in tensors.values())
  assert index['metadata']['total_size'] == total
  assert len(files) >= (total / shard_bytes if shard_bytes > 1 else 10)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_shards_are_files_that_the_formats_own_package_reads(tmp_path, dtype):
  official = pytest.importorskip(
      'safetensors',
      reason="needs safetensors: pip install -e '.[test]'",
  )
  _, tensors = save(tmp_path, np.dtype(dtype), shard_bytes=2000)
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  entries = {}
  for file in set(index['weight_map'].values()):
    for name, entry in official.deserialize((tmp_path / file).read_bytes()):
      assert index['weight_map'][name] == file
      entries[name] = entry
  assert len(entries) == len(tensors)
  short = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}[dtype]
  for path, tensor in tensors.items():
    entry, array = entries[hugging_face.their_name(path)], tensor.all()
    array = array if path == 'token_embedder/embedding' else array.T
    assert entry['dtype'] == short
    assert tuple(entry['shape']) == array.shape
    assert bytes(entry['data']) == array.tobytes()


def test_kernels_lie_transposed_and_tables_do_not(tmp_path):
  _, tensors = save(tmp_path)
  on_disk = safetensors.read(epath.Path(tmp_path / 'model.safetensors'))
  for name, path, is_transposed in (
      ('shared.weight', 'token_embedder/embedding', False),
      ('lm_head.weight', 'decoder/logits_dense/kernel', True),
      (
          'decoder.block.0.layer.1.EncDecAttention.o.weight',
          'decoder/layers_0/encoder_decoder_attention/out/kernel',
          True,
      ),
      (
          'encoder.block.0.layer.0.SelfAttention.relative_attention_bias'
          '.weight',
          'encoder/relpos_bias/rel_embedding',
          True,
      ),
      (
          'encoder.block.1.layer.1.DenseReluDense.wi_1.weight',
          'encoder/layers_1/mlp/wi_1/kernel',
          True,
      ),
      (
          'decoder.final_layer_norm.weight',
          'decoder/decoder_norm/scale',
          False,
      ),
  ):
    array = tensors[path].all()
    array = array.T if is_transposed else array
    np.testing.assert_array_equal(on_disk[name].all(), array)


# What a configuration says, in older and newer words.


@pytest.mark.parametrize(
    'model_type, values, expected',
    [
        ('t5', {'scale_decoder_outputs': True}, True),
        ('t5', {'scale_decoder_outputs': False}, False),
        ('t5', {'scale_decoder_outputs': None}, True),
        (
            't5',
            {'scale_decoder_outputs': None, 'tie_word_embeddings': False},
            False,
        ),
        ('mt5', {'tie_word_embeddings': True}, False),
        ('mt5', {'tie_word_embeddings': False}, False),
        ('mt5', {}, False),
        ('umt5', {'tie_word_embeddings': False}, False),
        ('umt5', {}, True),
        ('t5', {'tie_word_embeddings': True}, False),  # as newer versions write
        ('umt5', {'tie_word_embeddings': True}, True),
    ],
)
def test_whether_logits_are_scaled(tmp_path, model_type, values, expected):
  save(tmp_path, relative_bias_per_layer=model_type == 'umt5')
  change(
      tmp_path / 'config.json',
      model_type=model_type,
      **{'tie_word_embeddings': None, **values},
  )
  assert read(tmp_path).config.scale_logits is expected


@pytest.mark.parametrize(
    'feed_forward, expected',
    [
        ('relu', ('relu',)),
        ('gated-relu', ('relu', 'linear')),
        ('gelu', ('gelu_exact',)),
        ('gated-gelu', ('gelu', 'linear')),
        ('gelu_new', ('gelu',)),
        ('gated-gelu_new', ('gelu', 'linear')),
        ('gated-silu', ('silu', 'linear')),
        ('swish', ('silu',)),
        ('linear', ('linear',)),
        ('gated-linear', ('linear', 'linear')),
    ],
)
def test_activations(tmp_path, feed_forward, expected):
  save(tmp_path, mlp_activations=expected)
  change(tmp_path / 'config.json', feed_forward_proj=feed_forward)
  assert read(tmp_path).config.mlp_activations == expected


@pytest.mark.parametrize('model_type, gated', [('t5', False), ('mt5', True)])
def test_a_configuration_that_is_silent_means_the_defaults(
    tmp_path, model_type, gated
):
  activations = ('gelu', 'linear') if gated else ('relu',)
  save(
      tmp_path, mlp_activations=activations, num_decoder_layers=2,
      relative_buckets=32,
  )  # fmt: skip
  change(
      tmp_path / 'config.json',
      model_type=model_type,
      **dict.fromkeys(
          [
              'feed_forward_proj',
              'num_decoder_layers',
              'relative_attention_num_buckets',
              'relative_attention_max_distance',
              'layer_norm_epsilon',
              'pad_token_id',
              'eos_token_id',
              'decoder_start_token_id',
          ]
      ),
  )
  config = read(tmp_path).config
  assert config.mlp_activations == activations
  assert config.num_decoder_layers == 2
  assert config.relative_max_distance == 128


# What older versions of transformers left in files.


def rewrite(folder, edit):
  """The tensors of the folder's one file, edited."""
  path = epath.Path(folder / 'model.safetensors')
  arrays = {name: t.all() for name, t in safetensors.read(path).items()}
  edit(arrays)
  arrays = {name: tensors_lib.from_array(x) for name, x in arrays.items()}
  safetensors.write(path, arrays)


def add_copies(arrays):
  for name in ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'):
    arrays[name] = arrays['shared.weight']
  arrays['lm_head.weight'] = arrays['shared.weight']
  arrays[hugging_face._UNUSED] = np.zeros((8, 2), np.float32)


def rename_embedding(arrays):
  arrays['encoder.embed_tokens.weight'] = arrays.pop('shared.weight')


def keep_only_head(arrays):
  arrays['lm_head.weight'] = arrays.pop('shared.weight')


@pytest.mark.parametrize(
    'edit, ignored',
    [
        (
            add_copies,
            {
                'encoder.embed_tokens.weight',
                'decoder.embed_tokens.weight',
                'lm_head.weight',
                hugging_face._UNUSED,
            },
        ),
        (rename_embedding, {'encoder.embed_tokens.weight'}),
        (keep_only_head, {'lm_head.weight'}),
    ],
)
def test_copies_of_the_embedding_are_one(tmp_path, edit, ignored):
  config, tensors = save(tmp_path, logits_via_embedding=True, scale_logits=True)
  rewrite(tmp_path, edit)
  checkpoint = read(tmp_path)
  assert checkpoint.config == config
  path = 'token_embedder/embedding'
  np.testing.assert_array_equal(
      checkpoint.tensors[path].all(), tensors[path].all()
  )
  assert set(checkpoint.ignored) == ignored


def test_embeddings_that_differ_are_refused(tmp_path):
  def edit(arrays):
    arrays['decoder.embed_tokens.weight'] = arrays['shared.weight'] + 1

  save(tmp_path)
  rewrite(tmp_path, edit)
  with pytest.raises(errors.UserError, match='shared.weight and decoder.embed'):
    read(tmp_path)


def test_a_head_that_equals_the_embedding_may_be_one_of_its_own(tmp_path):
  def edit(arrays):
    arrays['lm_head.weight'] = arrays['shared.weight']

  save(tmp_path)
  rewrite(tmp_path, edit)
  change(tmp_path / 'config.json', tie_word_embeddings=False)
  assert not read(tmp_path).config.logits_via_embedding


# What is wrong.


@pytest.mark.parametrize(
    'values, message',
    [
        ({'model_type': 'bart'}, "model_type 'bart'; only the T5 family"),
        ({'model_type': None}, 'model_type None'),
        ({'eos_token_id': 2}, 'eos_token_id 2; only models where it is 1'),
        ({'pad_token_id': 3}, 'pad_token_id 3'),
        ({'decoder_start_token_id': 5}, 'decoder_start_token_id 5'),
        ({'feed_forward_proj': 'gated-tanh'}, "feed_forward_proj 'gated-tanh'"),
        ({'feed_forward_proj': 'x-relu'}, "feed_forward_proj 'x-relu'"),
        ({'feed_forward_proj': 3}, 'feed_forward_proj 3; it must be one of'),
        ({'d_kv': None, 'd_ff': None}, 'lacks d_kv, d_ff'),
        ({'d_kv': 0, 'd_ff': 'x'}, "says d_kv 0, d_ff 'x'; sizes are whole"),
        ({'num_layers': 1.5}, 'num_layers 1.5'),
        ({'num_heads': [2]}, r'num_heads \[2\]'),
        ({'vocab_size': True}, 'vocab_size True'),
        ({'num_decoder_layers': 0}, 'num_decoder_layers 0'),
        ({'relative_attention_num_buckets': ''}, "num_buckets ''"),
        ({'relative_attention_max_distance': -1}, 'max_distance -1'),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, values, message):
  save(tmp_path)
  change(tmp_path / 'config.json', **values)
  with pytest.raises(errors.UserError, match=message):
    read(tmp_path)


def test_a_size_that_is_null_is_named(tmp_path):
  save(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(
      json.dumps({**json.loads(path.read_text()), 'num_layers': None})
  )
  with pytest.raises(errors.UserError, match='says num_layers None'):
    read(tmp_path)


def test_as_many_layers_on_both_sides_where_the_decoders_are_null(tmp_path):
  save(tmp_path, num_decoder_layers=2)
  path = tmp_path / 'config.json'
  path.write_text(
      json.dumps({**json.loads(path.read_text()), 'num_decoder_layers': None})
  )
  assert read(tmp_path).config.num_decoder_layers == 2


@pytest.mark.parametrize('text', ['{', '[]', '"t5"', '[' * 100_000])
def test_a_configuration_that_is_no_object_is_named(tmp_path, text):
  save(tmp_path)
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(errors.UserError, match='config.json is damaged'):
    read(tmp_path)


def test_weights_alone_are_not_enough(tmp_path):
  save(tmp_path)
  (tmp_path / 'config.json').unlink()
  with pytest.raises(errors.UserError, match='config.json is not there'):
    read(tmp_path)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
  def edit(arrays):
    del arrays['encoder.final_layer_norm.weight']
    arrays['more.weight'] = np.zeros(3, np.float32)

  save(tmp_path)
  rewrite(tmp_path, edit)
  change(tmp_path / 'config.json', d_ff=9, num_layers=1)
  with pytest.raises(errors.UserError) as raised:
    read(tmp_path)
  message = str(raised.value)
  assert 'encoder.final_layer_norm.weight is missing' in message
  assert (
      'encoder.block.1.layer.0.SelfAttention.k.weight is left over' in message
  )
  assert 'more.weight is left over' in message
  name = 'decoder.block.0.layer.2.DenseReluDense.wo.weight'
  assert f'{name} is (6, 8) but should be (6, 9)' in message


@pytest.mark.parametrize(
    'file', ['pytorch_model.bin', 'pytorch_model.bin.index.json', 'tf_model.h5']
)
def test_pickles_are_not_read_and_the_way_out_is_said(tmp_path, file):
  save(tmp_path)
  (tmp_path / 'model.safetensors').rename(tmp_path / file)
  with pytest.raises(errors.UserError) as raised:
    read(tmp_path)
  assert f'has only {file}' in str(raised.value)
  assert f'from_pretrained("{tmp_path}").save_pretrained' in str(raised.value)


def test_no_weights_at_all(tmp_path):
  save(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  with pytest.raises(errors.UserError, match='has no weights: neither'):
    read(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
  save(tmp_path, shard_bytes=500)
  for number in (2, 3):
    next(tmp_path.glob(f'model-0000{number}-of-*')).unlink()
  with pytest.raises(
      errors.UserError, match='not there: model-00002-of-.*, model-00003-of-'
  ):
    read(tmp_path)


def edit_index(folder, edit):
  path = folder / 'model.safetensors.index.json'
  values = json.loads(path.read_text())
  edit(values)
  path.write_text(json.dumps(values))


def move(values):
  first, *_, last = sorted(set(values['weight_map'].values()))
  name = next(n for n, f in values['weight_map'].items() if f == first)
  values['weight_map'][name] = last


@pytest.mark.parametrize(
    'edit, message',
    [
        (lambda v: v.pop('weight_map'), 'index.json is damaged'),
        (lambda v: v.update(weight_map=[1]), 'index.json is damaged'),
        (
            lambda v: v['weight_map'].update({'shared.weight': '../x'}),
            r"files that are not in its folder: '\.\./x'\. Copy",
        ),
        (
            lambda v: v['weight_map'].update({'shared.weight': '..'}),
            r"files that are not in its folder: '\.\.'\. Copy",
        ),
        (
            lambda v: v['weight_map'].update({'shared.weight': ''}),
            "files that are not in its folder: ''",
        ),
        (
            lambda v: v['weight_map'].update(dict.fromkeys(v['weight_map'], 3)),
            'index.json is damaged',
        ),
        (
            lambda v: v['weight_map'].update({'more': 'config.json'}),
            'config.json is no complete safetensors file',
        ),
        (
            move,
            r'k\.weight is not in model-00004.*k\.weight in .* is not listed',
        ),
        (
            lambda v: v['weight_map'].pop('shared.weight'),
            'shared.weight in model-.* is not listed',
        ),
    ],
)
def test_a_wrong_index_is_named(tmp_path, edit, message):
  save(tmp_path, shard_bytes=2000)
  edit_index(tmp_path, edit)
  with pytest.raises(errors.UserError, match=message):
    read(tmp_path)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'num_encoder_layers': 0}, 'is decoder-only.*to=t5x or'),
        (
            {'num_encoder_layers': 0, 'encoded_dim': 4},
            "its target's encoder output.*Write it with to=distillspec",
        ),
        ({'trimmed_vocabulary': (0, 1, 5)}, 'predicts 3 of 24 tokens only'),
        ({'mlp_activations': ('gelu_exact', 'linear')}, 'mlp_activations'),
        ({'mlp_activations': ('relu', 'relu')}, 'mlp_activations'),
        (
            {'relative_bias_per_layer': True, 'logits_via_embedding': True},
            'does not scale logits, and has a relative bias in every layer',
        ),
    ],
)
def test_what_transformers_has_not_is_refused(tmp_path, changes, message):
  config = dataclasses.replace(CONFIG, **changes)
  with pytest.raises(errors.UserError, match=message):
    hugging_face.write(epath.Path(tmp_path), config, {})
  assert list(tmp_path.iterdir()) == []
