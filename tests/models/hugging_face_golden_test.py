"""Hugging Face folders against what transformers computed from them."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import pretrained
from distillspec_jax.models import relative_position
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative

NAMES = ['t5_v10', 't5_v11', 't5_v11_bf16_sharded', 'byt5']


@functools.cache
def load(folder, name):
  """The model and its recorded arrays."""
  with np.load(folder / name / 'golden.npz') as arrays:
    recorded = {key: arrays[key] for key in arrays}
  return pretrained.load(folder / name), recorded


@pytest.fixture(name='folder', scope='module')
def _folder(shared):
  return shared / 'golden/hugging_face'


@pytest.fixture(name='golden', params=NAMES)
def _golden(folder, request):
  return load(folder, request.param)


@pytest.mark.parametrize('reference', ['logits', 'logits_f64'])
def test_logits(golden, reference):
  model, recorded = golden
  if reference not in recorded:
    reference = 'logits'
  logits = model.logits(
      recorded['input_ids'],
      recorded['decoder_input_ids'],
      recorded['attention_mask'] > 0,
  )
  np.testing.assert_allclose(logits, recorded[reference], atol=1e-3)


def test_logits_of_long_inputs(golden):
  model, recorded = golden
  if 'long_logits' not in recorded:
    pytest.skip('nothing was recorded of long inputs for this model')
  logits = model.logits(
      recorded['long_input_ids'],
      recorded['long_decoder_input_ids'],
      recorded['long_attention_mask'] > 0,
  )
  np.testing.assert_allclose(logits, recorded['long_logits'], atol=2e-3)


def test_logits_where_decoder_positions_are_masked(golden):
  model, recorded = golden
  if 'logits_with_decoder_mask' not in recorded:
    pytest.skip('nothing was recorded with a decoder mask for this model')
  mask = recorded['decoder_attention_mask'].astype(np.int32)
  logits = model.transformer.logits(
      model.params,
      recorded['input_ids'].astype(np.int32),
      recorded['attention_mask'].astype(np.int32),
      recorded['decoder_input_ids'].astype(np.int32),
      mask,
  )
  expected = recorded['logits_with_decoder_mask']
  np.testing.assert_allclose(logits[mask > 0], expected[mask > 0], atol=1e-3)


def test_encoder_states(golden):
  model, recorded = golden
  if 'encoder_last_hidden_state' not in recorded:
    pytest.skip('no encoder states were recorded for this model')
  mask = recorded['attention_mask'].astype(np.int32)
  states = model.transformer._apply(
      model.params,
      recorded['input_ids'].astype(np.int32),
      mask,
      method='encode',
  )
  expected = recorded['encoder_last_hidden_state']
  np.testing.assert_allclose(states[mask > 0], expected[mask > 0], atol=1e-3)


def test_the_loss_of_labels(golden):
  model, recorded = golden
  if 'loss_from_labels' not in recorded:
    pytest.skip('no loss was recorded for this model')
  labels = recorded['labels']
  real = labels >= 0
  decoder_inputs = transformer_lib.shift_right(
      jnp.asarray(np.where(real, labels, 0)), jnp.ones(labels.shape, jnp.int32)
  )
  logits = model.logits(
      recorded['input_ids'], decoder_inputs, recorded['attention_mask'] > 0
  )
  log_p = np.asarray(jax.nn.log_softmax(logits))
  picked = np.take_along_axis(log_p, np.where(real, labels, 0)[..., None], -1)
  loss = -picked[..., 0][real].mean()
  np.testing.assert_allclose(loss, recorded['loss_from_labels'], rtol=1e-4)


def test_buckets(golden):
  _, recorded = golden
  if 'bucket_relative_position' not in recorded:
    pytest.skip('no buckets were recorded for this model')
  for name, bidirectional in (('bidirectional', True), ('causal', False)):
    found = relative_position.bucket(
        recorded['bucket_relative_position'], bidirectional, 32, 128
    )
    np.testing.assert_array_equal(found, recorded[f'bucket_{name}'])


def other_model(model):
  """A small draft of the same vocabulary."""
  config = config_lib.published('test', vocab_size=model.config.vocab_size)
  transformer = transformer_lib.Transformer(config)
  return transformer, transformer.init(jax.random.key(0))


def generated(model, recorded, prefix, length, eos, is_speculative):
  decoding = decoding_lib.Decoding(
      max_new_tokens=length, block_length=4, eos_id=eos
  )
  tokens = recorded[f'{prefix}input_ids'].astype(np.int32)
  segments = recorded[f'{prefix}attention_mask'].astype(np.int32)
  keys = randomness.row_keys(jax.random.key(0), len(tokens))
  arguments = (tokens, segments, keys, decoding)
  if is_speculative:
    out = speculative.generate(
        model.transformer, model.params, *other_model(model), *arguments
    )
  else:
    out = autoregressive.generate(model.transformer, model.params, *arguments)
  return np.asarray(out.tokens)


@pytest.mark.parametrize(
    'is_speculative', [False, True], ids=['autoregressive', 'speculative']
)
@pytest.mark.parametrize(
    'name, prefix',
    [
        ('greedy_sequences', ''),
        ('greedy150_sequences', ''),
        ('greedy_long_sequences', 'long_'),
    ],
)
def test_greedy_tokens(golden, name, prefix, is_speculative):
  model, recorded = golden
  if name not in recorded:
    pytest.skip(f'no {name} were recorded for this model')
  expected = recorded[name][:, 1:]
  found = generated(
      model, recorded, prefix, expected.shape[1], -1, is_speculative
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    'is_speculative', [False, True], ids=['autoregressive', 'speculative']
)
def test_greedy_tokens_end_with_eos(golden, is_speculative):
  model, recorded = golden
  if 'greedy_eos_sequences' not in recorded:
    pytest.skip('nothing was recorded with an EOS for this model')
  expected = recorded['greedy_eos_sequences'][:, 1:]
  eos = int(recorded['greedy_eos_id'])
  found = generated(model, recorded, '', expected.shape[1], eos, is_speculative)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', ['t5_v10', 't5_v11', 'byt5'])
def test_the_hubs_older_configuration_is_the_same_model(folder, tmp_path, name):
  shutil.copytree(folder / name, tmp_path / name)
  hub_style = folder / name / 'config_hub_style.json'
  shutil.copyfile(hub_style, tmp_path / name / 'config.json')
  assert pretrained.load(tmp_path / name).config == load(folder, name)[0].config


def test_parameters_are_kept_as_they_lie_on_disk(folder):
  half = load(folder, 't5_v11_bf16_sharded')[0]
  assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.bfloat16.dtype}
  wide = pretrained.load(folder / 't5_v11_bf16_sharded', param_dtype='float32')
  assert {x.dtype for x in jax.tree.leaves(wide.params)} == {
      jnp.dtype('float32')
  }


def test_an_embedding_that_is_the_output_layer_is_recognised(folder, tmp_path):
  config = load(folder, 't5_v10')[0].config
  assert config.logits_via_embedding and config.scale_logits
  config = load(folder, 't5_v11')[0].config
  assert not config.logits_via_embedding and not config.scale_logits
  values = json.loads((folder / 't5_v11' / 'config.json').read_text())
  assert values['tie_word_embeddings'] is True  # which is not what it seems
