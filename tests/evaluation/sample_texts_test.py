"""Pieces of an answer make up the answer, whatever bytes it is cut at."""

import json

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.data import vocabularies
from distillspec_jax.evaluation import pair
from distillspec_jax.evaluation import sample_texts
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import samples as samples_lib
from tests import tiny

DECODING = decoding_lib.Decoding(
    temperature=1.0, block_length=3, max_new_tokens=16
)
Origin = samples_lib.Origin


@pytest.fixture(scope='module')
def vocabulary():
  return vocabularies.load('bytes')


def pieces(vocabulary, text, origins):
  tokens = np.array(vocabulary.encode(text))
  return sample_texts._pieces(vocabulary, tokens, np.array(origins))


def test_neighbours_of_one_origin_are_one_piece(vocabulary):
  found = pieces(vocabulary, 'abcd', [2, 2, 3, 4])
  assert found == [
      {'text': 'ab', 'source': 'accepted'},
      {'text': 'c', 'source': 'corrected'},
      {'text': 'd', 'source': 'bonus'},
  ]


def test_a_character_is_with_its_last_byte(vocabulary):
  found = pieces(vocabulary, 'aé', [2, 2, 3])
  assert [piece['text'] for piece in found] == ['a', 'é']


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 383), st.integers(2, 4)),
        min_size=1,
        max_size=12,
    )
)
def test_pieces_of_any_tokens_make_up_the_text(vocabulary, row):
  tokens, origins = np.array(row).T
  found = sample_texts._pieces(vocabulary, tokens, origins)
  whole = generation.detokenize(vocabulary, tokens)
  assert ''.join(piece['text'] for piece in found) == whole


def test_collected_answers_are_the_models(vocabulary):
  target, draft = (
      tiny.with_vocabulary(model(384), vocabulary)
      for model in (tiny.target, tiny.draft)
  )
  batches = [tiny.batch(4, empty=2), tiny.batch(4, seed=1)]
  found = sample_texts.collect(
      target, draft, batches, DECODING, seed=5, count=3, draft_name='distilled'
  )
  json.dumps(found)
  assert len(found) == 3
  for sample in found:
    assert sample['draft'] == 'distilled'
    assert sample['decoding']['block_length'] == 3
    assert 1 <= sample['blocks'] <= sample['emitted'] <= 16
    sources = {piece['source'] for piece in sample['pieces']}
    assert sources <= {'accepted', 'corrected', 'bonus'}
  # The third answer is the first row of the second batch, the fifth of all.
  keys = randomness.row_keys(jax.random.key(5), 4 + np.arange(4))
  second = batches[1]
  samples = pair.answer(
      target, draft, second.inputs, second.input_segments, keys, DECODING
  )
  tokens = np.asarray(samples.tokens)[0, : int(samples.lengths[0])]
  text = ''.join(piece['text'] for piece in found[2]['pieces'])
  assert text == generation.detokenize(vocabulary, tokens)
  assert found[2]['emitted'] == len(tokens)


def test_no_more_than_there_are(vocabulary):
  target = tiny.with_vocabulary(tiny.target(384), vocabulary)
  found = sample_texts.collect(
      target,
      target,
      [tiny.batch(4, empty=2)],
      DECODING,
      seed=0,
      count=9,
      draft_name='itself',
  )
  assert len(found) == 2
