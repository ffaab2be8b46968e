"""Hugging Face folders against what transformers computed from them."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import relative_position
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import sampler
from tests import tiny

FULL = ['t5_v10', 't5_v11', 'byt5']  # everything was recorded of these
NAMES = [*FULL, 't5_v11_bf16_sharded']


@functools.cache
def load(folder, name):
  """The model and its recorded arrays."""
  with np.load(folder / name / 'golden.npz') as arrays:
    recorded = {key: arrays[key] for key in arrays}
  return loading.load(folder / name), recorded


@pytest.fixture(name='folder', scope='module')
def _folder(shared):
  return shared / 'golden/hugging_face'


@pytest.fixture(name='golden', params=NAMES)
def _golden(folder, request):
  return load(folder, request.param)


@pytest.fixture(name='full', params=FULL)
def _full(folder, request):
  return load(folder, request.param)


def integers(arrays, name):
  return arrays[name].astype(np.int32)


def prompt(arrays, prefix=''):
  return types.Prompt(
      integers(arrays, f'{prefix}input_ids'),
      integers(arrays, f'{prefix}attention_mask'),
  )


def assert_near(found, expected, atol):
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def teacher_forced(model, recorded):
  return model.logits(
      recorded['input_ids'],
      recorded['decoder_input_ids'],
      recorded['attention_mask'] > 0,
  )


def test_logits(golden):
  assert_near(teacher_forced(*golden), golden[1]['logits'], 1e-3)


def test_logits_against_those_in_double_precision(full):
  assert_near(teacher_forced(*full), full[1]['logits_f64'], 1e-3)


def test_inputs_are_padded_on_either_side(golden):
  starts = golden[1]['attention_mask'][:, 0]
  assert 0 < starts.sum() < len(starts)  # so the above says it of both


def test_logits_of_long_inputs(full):
  model, recorded = full
  logits = model.logits(
      recorded['long_input_ids'],
      recorded['long_decoder_input_ids'],
      recorded['long_attention_mask'] > 0,
  )
  assert_near(logits, recorded['long_logits'], 2e-3)


def test_logits_where_decoder_positions_are_masked(full):
  model, recorded = full
  mask = integers(recorded, 'decoder_attention_mask')
  logits = jax.jit(model_lib.Model.logits)(
      model.model,
      prompt(recorded),
      integers(recorded, 'decoder_input_ids'),
      mask,
  )
  expected = recorded['logits_with_decoder_mask']
  assert_near(logits[mask > 0], expected[mask > 0], 1e-3)


def assert_encoded(model, recorded, prefix):
  mask = integers(recorded, f'{prefix}attention_mask')
  states = jax.jit(model_lib.Model.encode)(
      model.model, prompt(recorded, prefix)
  )
  expected = recorded[f'{prefix}encoder_last_hidden_state']
  assert_near(states[mask > 0], expected[mask > 0], 1e-3)


def test_encoder_states(golden):
  assert_encoded(*golden, '')


def test_encoder_states_of_long_inputs(full):
  assert_encoded(*full, 'long_')


def test_decoder_states(full):
  model, recorded = full
  tokens = integers(recorded, 'decoder_input_ids')
  states = jax.jit(model_lib.Model.hidden)(
      model.model, prompt(recorded), tokens, np.ones_like(tokens)
  )
  assert_near(states, recorded['decoder_hidden_states'][-1], 1e-3)


def test_the_loss_of_labels(full):
  model, recorded = full
  labels = recorded['labels']
  real = labels >= 0
  decoder_inputs = model_lib.shift_right(
      jnp.asarray(np.where(real, labels, 0)), jnp.ones(labels.shape, jnp.int32)
  )
  logits = model.logits(
      recorded['input_ids'], decoder_inputs, recorded['attention_mask'] > 0
  )
  log_p = np.asarray(jax.nn.log_softmax(logits))
  picked = np.take_along_axis(log_p, np.where(real, labels, 0)[..., None], -1)
  loss = -picked[..., 0][real].mean()
  np.testing.assert_allclose(loss, recorded['loss_from_labels'], rtol=1e-4)


def test_buckets(full):
  _, recorded = full
  for name, bidirectional in (('bidirectional', True), ('causal', False)):
    found = relative_position.bucket(
        recorded['bucket_relative_position'], bidirectional, 32, 128
    )
    np.testing.assert_array_equal(found, recorded[f'bucket_{name}'])


def generated(model, recorded, prefix, length, eos_ids, is_speculative):
  decoding = decoding_lib.Decoding(
      drafting=decoding_lib.Drafting(length=4),
      max_new_tokens=length,
      eos_ids=eos_ids,
  )
  read = prompt(recorded, prefix)
  keys = randomness.row_keys(jax.random.key(0), len(read.tokens))
  draft = None
  if is_speculative:  # a small model of the same vocabulary
    draft = tiny.model(model.config.vocab_size)
  samples = sampler.generate(model.model, read, keys, decoding, draft=draft)
  return np.asarray(samples.tokens)


both_ways = pytest.mark.parametrize(
    'is_speculative', [False, True], ids=['autoregressive', 'speculative']
)


@both_ways
@pytest.mark.parametrize(
    'name, prefix',
    [('greedy150_sequences', ''), ('greedy_long_sequences', 'long_')],
)
def test_greedy_tokens(full, name, prefix, is_speculative):
  model, recorded = full
  expected = recorded[name][:, 1:]
  length = expected.shape[1]
  found = generated(model, recorded, prefix, length, (), is_speculative)
  np.testing.assert_array_equal(found, expected)
  if not prefix:  # recorded by another call, of fewer tokens
    fewer = recorded['greedy_sequences'][:, 1:]
    np.testing.assert_array_equal(found[:, : fewer.shape[1]], fewer)


@both_ways
def test_greedy_tokens_of_bfloat16_parameters(folder, is_speculative):
  model, recorded = load(folder, 't5_v11_bf16_sharded')
  expected = recorded['greedy_sequences'][:, 1:]
  found = generated(model, recorded, '', expected.shape[1], (), is_speculative)
  np.testing.assert_array_equal(found, expected)


@both_ways
def test_greedy_tokens_end_with_eos(full, is_speculative):
  model, recorded = full
  expected = recorded['greedy_eos_sequences'][:, 1:]
  eos = int(recorded['greedy_eos_id'])
  assert (expected == eos).any()
  found = generated(
      model, recorded, '', expected.shape[1], (eos,), is_speculative
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('block', [1, 8])
def test_logits_of_every_greedy_step(full, block):
  model, recorded = full
  expected = recorded['greedy_scores']
  extend = jax.jit(model_lib.Model.extend)
  unembed = jax.jit(model_lib.Model.unembed)
  state, _ = jax.jit(model_lib.Model.prefill, static_argnums=2)(
      model.model, prompt(recorded), expected.shape[1]
  )
  tokens = integers(recorded, 'greedy_sequences')[:, :-1]
  for start in range(0, tokens.shape[1], block):
    hidden, state = extend(model.model, state, tokens[:, start : start + block])
    logits = unembed(model.model, hidden)
    assert_near(logits, expected[:, start : start + block], 1e-3)


@pytest.mark.parametrize('name', FULL)
def test_the_hubs_older_configuration_is_the_same_model(folder, tmp_path, name):
  shutil.copytree(folder / name, tmp_path / name)
  hub_style = folder / name / 'config_hub_style.json'
  shutil.copyfile(hub_style, tmp_path / name / 'config.json')
  model, recorded = loading.load(tmp_path / name), load(folder, name)[1]
  assert model.config == load(folder, name)[0].config
  assert_near(teacher_forced(model, recorded), recorded['logits'], 1e-3)


def test_parameters_are_kept_as_they_lie_on_disk(folder):
  half = load(folder, 't5_v11_bf16_sharded')[0]
  assert {x.dtype for x in jax.tree.leaves(half.model.params)} == {
      jnp.bfloat16.dtype
  }
  wide = loading.load(folder / 't5_v11_bf16_sharded', param_dtype='float32')
  assert {x.dtype for x in jax.tree.leaves(wide.model.params)} == {
      jnp.dtype('float32')
  }


def test_an_embedding_that_is_the_output_layer_is_recognised(folder, tmp_path):
  config = load(folder, 't5_v10')[0].config
  assert config.logits_via_embedding and config.scale_logits
  config = load(folder, 't5_v11')[0].config
  assert not config.logits_via_embedding and not config.scale_logits
  values = json.loads((folder / 't5_v11' / 'config.json').read_text())
  assert values['tie_word_embeddings'] is True  # which is not what it seems
