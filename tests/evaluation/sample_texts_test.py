"""The pieces of an output make up the output, whatever bytes split it."""

import json

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.data import vocabularies
from distillspec_jax.evaluation import sample_texts
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from tests import tiny

DECODING = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=3),
    max_new_tokens=16,
)
Origin = samples_lib.Origin


@pytest.fixture(scope='module')
def vocabulary():
  return vocabularies.load('bytes')


def pieces(vocabulary, text, origins):
  tokens = np.array(vocabulary.encode(text))
  return sample_texts._pieces(vocabulary, tokens, np.array(origins))


def test_neighbours_of_one_origin_are_one_piece(vocabulary):
  assert pieces(vocabulary, 'abcd', [2, 2, 3, 4]) == [
      {'text': 'ab', 'source': 'accepted'},
      {'text': 'c', 'source': 'corrected'},
      {'text': 'd', 'source': 'bonus'},
  ]


def test_a_character_is_with_its_last_byte(vocabulary):
  texts = [piece['text'] for piece in pieces(vocabulary, 'aé', [2, 2, 3])]
  assert texts == ['a', 'é']


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
  texts = [
      piece['text']
      for piece in sample_texts._pieces(vocabulary, tokens, origins)
  ]
  assert ''.join(texts) == generation.detokenize(vocabulary, tokens)


def test_collected_outputs_are_the_models(vocabulary):
  target, draft = (
      tiny.with_vocabulary(model(384), vocabulary)
      for model in (tiny.target, tiny.draft)
  )
  batches = [tiny.batch(4, empty=2), tiny.batch(4, seed=1)]
  outputs = sample_texts.collect(
      target, draft, batches, DECODING, seed=5, count=3, draft_name='distilled'
  )
  json.dumps(outputs)
  assert len(outputs) == 3
  for sample in outputs:
    assert sample['draft'] == 'distilled'
    assert sample['decoding']['block_length'] == 3
    assert 1 <= sample['blocks'] <= sample['emitted'] <= 16
    share = sample['emitted'] * sample['top_token_share']
    assert 1 <= share == pytest.approx(round(share))
    sources = {piece['source'] for piece in sample['pieces']}
    assert sources <= {'accepted', 'corrected', 'bonus'}
  # The third output is the first row of the second batch, the fifth of all.
  keys = randomness.row_keys(jax.random.key(5), 4 + np.arange(4))
  second = batches[1]
  samples = speculative.generate(
      target.model, draft.model, second.prompt, keys, DECODING
  )
  tokens = np.asarray(samples.tokens)[0, : int(samples.lengths[0])]
  text = ''.join(piece['text'] for piece in outputs[2]['pieces'])
  assert text == generation.detokenize(vocabulary, tokens)
  assert outputs[2]['emitted'] == len(tokens)


def test_no_more_than_there_are(vocabulary):
  target = tiny.with_vocabulary(tiny.target(384), vocabulary)
  outputs = sample_texts.collect(
      target,
      target,
      [tiny.batch(4, empty=2)],
      DECODING,
      seed=0,
      count=9,
      draft_name='itself',
  )
  assert len(outputs) == 2


@pytest.mark.parametrize(
    'text, expected',
    [
        ('# Python 3.111111111111111', True),
        ('x = 1\nx = 1\nx = 1\nx = 1\n', True),
        ('ab', False),
        ('', False),
        ('def first(values):\n  return values[0]\n', False),
        ('aaaaaaaaaa and then something else', True),
        ('f(self, key, key, key, key', True),
        ('  def f():\n    """One."""\n        x = 1', False),
    ],
)
def test_a_text_with_a_loop_is_repetitive(text, expected):
  outputs = [output('import os'), output(text[:5], text[5:])]
  assert sample_texts.is_repetitive(outputs) == expected


def output(*texts, share=0.1):
  pieces = [{'text': text} for text in texts]
  return {'pieces': pieces, 'top_token_share': share}


def test_a_text_of_one_token_above_all_is_repetitive():
  assert not sample_texts.is_repetitive([output('ab', share=1 / 3)])
  assert sample_texts.is_repetitive([output('ab', share=0.34)])


def test_chosen_are_texts_without_loops_from_different_files():
  good, loop = [output('a b c')], [output('ab' * 9)]
  candidates = [loop, good, good, good, loop]
  files = ['x', 'y', 'y', 'z', 'w']
  choose = sample_texts.choose
  assert choose(candidates, files, 2) == [1, 3]
  assert choose(candidates, files, 4) == [1, 3, 2, 0]
  assert choose(candidates, files, 9) == [1, 3, 2, 0, 4]
