"""Texts or tokens in, texts and tokens out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import pretrained
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import generation

TEXTS = ['two words', 'a longer one', '']
SAMPLED = {'temperature': 1.0, 'max_new_tokens': 6}


@pytest.fixture(name='model', scope='module')
def _model():
  transformer = transformer_lib.Transformer(
      config_lib.published('test', vocab_size=384)
  )
  params = jax.tree.map(lambda x: 2 * x, transformer.init(jax.random.key(0)))
  words = vocabularies.load('bytes')
  return pretrained.Model(transformer, params, words, 'model')


def test_texts_and_their_tokens_have_the_same_answers(model):
  of_texts = generation.generate(model, TEXTS, **SAMPLED)
  rows = [[*(ord(letter) + 3 for letter in text), 1] for text in TEXTS]
  tokens = np.zeros((3, 16), np.int32)
  for row, values in zip(tokens, rows):
    row[: len(values)] = values
  of_tokens = generation.generate(model, tokens, **SAMPLED)
  np.testing.assert_array_equal(of_texts.tokens, of_tokens.tokens)
  for text, row, length in zip(
      of_texts.text, of_texts.tokens, of_texts.lengths
  ):
    assert text == model.vocabulary.decode([int(t) for t in row[:length]])
    assert not row[length:].any()


def test_a_row_draws_from_the_stream_of_its_number(model):
  whole = generation.generate(model, TEXTS, seed=3, **SAMPLED)
  decoding = decoding_lib.Decoding(**SAMPLED)
  tokens, segments = batching.pad(
      [generation.tokenize(model, text) for text in TEXTS]
  )
  order = np.array([2, 0, 1])
  out = generation.sample(
      model, None, tokens[order], segments[order], order, decoding, 3
  )
  np.testing.assert_array_equal(out.tokens, whole.tokens[order])
  np.testing.assert_array_equal(out.lengths, whole.lengths[order])
  other = generation.sample(
      model, None, tokens[order], segments[order], order + 3, decoding, 3
  )
  assert (other.tokens != out.tokens).any(axis=1).all()


def test_without_a_vocabulary_there_is_no_text(model):
  silent = pretrained.Model(model.transformer, model.params)
  out = generation.generate(silent, np.full((3, 16), 5), **SAMPLED)
  assert out.text == [] and out.tokens.shape == (3, 6)
  with pytest.raises(errors.UserError, match='model has no vocabulary'):
    generation.generate(silent, TEXTS)


def test_text_has_no_end_in_it(model):
  tokens = np.array([100, 101, 1])
  assert generation.detokenize(model.vocabulary, tokens) == 'ab'


@pytest.mark.parametrize(
    'inputs, changes, message',
    [
        ('one', {}, "one string, 'one'; give a list"),
        ([], {}, 'inputs is empty'),
        (np.zeros(3, np.int32), {}, r'inputs has shape \(3,\); give int32'),
        (np.zeros((0, 3), np.int32), {}, r'has shape \(0, 3\)'),
        (TEXTS, {'seed': -1}, r'seed is -1; it must lie in \[0, 2\*\*32\)'),
        (TEXTS, {'seed': 2**32}, 'seed is 4294967296'),
        (TEXTS, {'temperature': -1.0}, 'temperature is -1.0'),
    ],
)
def test_what_does_not_fit_is_named(model, inputs, changes, message):
  with pytest.raises(errors.UserError, match=message):
    generation.generate(model, inputs, **changes)


def test_seeds_beyond_the_limits_share_their_streams():
  # Why they are refused.
  bits = {
      seed: int(jax.random.bits(jax.random.key(seed)))
      for seed in (0, 2**32 - 1, 2**32, -1)
  }
  assert bits[2**32] == bits[0] != bits[-1] == bits[2**32 - 1]


@pytest.mark.parametrize(
    'length, width', [(0, 0), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32)]
)
def test_widths_are_powers_of_two(length, width):
  assert batching.width(length) == width


def test_padding_is_marked():
  tokens, segments = batching.pad([[5, 6], [], [7]], 3)
  np.testing.assert_array_equal(tokens, [[5, 6, 0], [0, 0, 0], [7, 0, 0]])
  np.testing.assert_array_equal(segments, tokens != 0)
  assert jnp.asarray(tokens).dtype == jnp.int32
  assert batching.pad([[1] * 9])[0].shape == (1, 16)
