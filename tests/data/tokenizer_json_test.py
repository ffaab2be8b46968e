import json

import hypothesis
from hypothesis import strategies
import pytest
from sentencepiece import sentencepiece_model_pb2
import tokenizers

from distillspec_jax.core import errors
from distillspec_jax.data import standard_library
from distillspec_jax.data import tokenizer_json
from distillspec_jax.data import vocabularies
from tests.data import tiny_tokenizers


def proto_of(model):
  return sentencepiece_model_pb2.ModelProto.FromString(model)


@pytest.fixture(scope='module')
def texts():
  pairs = standard_library.continuations('validation', 300, 100)
  return [text for pair in pairs for text in pair][:3000]


@pytest.fixture(scope='module')
def ours(texts, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield vocabularies.train_sentencepiece(texts, 1024)


@pytest.fixture(scope='module')
def written(ours):
  text = tokenizer_json.from_sentencepiece(proto_of(ours.model), 0)
  return tokenizers.Tokenizer.from_str(text)


def test_our_models_cut_code_the_same_there(ours, written, texts):
  for text in texts:
    ids = list(ours.encode(text))
    assert written.encode(text).ids == [*ids, 1]
    assert written.decode(ids) == text


# NUL ends the text for some, and '▁' is a blank for both.
@hypothesis.given(strategies.text(' \t\nabe=._(é😀ש\u0301\u200d'))
@hypothesis.settings(max_examples=300)
def test_our_models_cut_any_text_the_same_there(ours, written, text):
  ids = list(ours.encode(text))
  assert written.encode(text, add_special_tokens=False).ids == ids
  assert written.decode(ids) == text


def test_unigram_models_with_bytes_are_written(tmp_path):
  proto = proto_of(tiny_tokenizers.unigram(byte_fallback=True))
  assert not tokenizer_json.is_like_t5(proto)
  written = tokenizers.Tokenizer.from_str(
      tokenizer_json.from_sentencepiece(proto, 3)
  )
  mt5 = vocabularies.load(tiny_tokenizers.mt5(tmp_path / 'mt5'))
  for text in ['', 'the  draft\tis verified. ', 'שלום 😀', 'ﬁ']:
    ids = mt5.encode(text)
    assert written.encode(text, add_special_tokens=False).ids == ids
    assert written.decode(ids) == mt5.decode(ids)
  assert [written.token_to_id(f'<extra_id_{i}>') for i in range(3)] == [
      322,
      321,
      320,
  ]


def test_only_models_like_t5_are_for_its_tokenizer(ours):
  assert tokenizer_json.is_like_t5(proto_of(tiny_tokenizers.unigram()))
  assert not tokenizer_json.is_like_t5(proto_of(ours.model))


def test_models_without_a_counterpart_are_refused():
  proto = proto_of(tiny_tokenizers.unigram())
  proto.trainer_spec.treat_whitespace_as_suffix = True
  with pytest.raises(errors.UserError, match='no counterpart'):
    tokenizer_json.from_sentencepiece(proto, 0)
  proto.trainer_spec.treat_whitespace_as_suffix = False
  proto.trainer_spec.model_type = 3  # words
  with pytest.raises(errors.UserError, match='no counterpart'):
    tokenizer_json.from_sentencepiece(proto, 0)


def test_controls_are_renamed_and_keep_their_names_in_the_list(ours):
  text = tokenizer_json.from_sentencepiece(proto_of(ours.model), 0)
  tokenizer = tokenizer_json.readable(text)
  assert tokenizer.pieces[:3] == ['<pad>', '</s>', '<unk>']
  assert len(tokenizer.pieces) == 1024
  assert tokenizer.unknown == 2
  changed = json.loads(tokenizer.text)
  assert changed['model']['unk_token'] == ' ⁇ '
  assert '</s>' not in changed['model']['vocab']
  assert [token['content'] for token in changed['added_tokens']] == ['\n']
