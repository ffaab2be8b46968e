import json

import pytest
from sentencepiece import sentencepiece_model_pb2

from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from tests.data import tiny_tokenizers

SENTINELS = [f'<extra_id_{i}>' for i in range(100)]
UNIGRAM = tiny_tokenizers.unigram()


def read(folder, vocab_size=None, model=UNIGRAM, **config):
  tiny_tokenizers.hugging_face_folder(folder, model, **config)
  return vocabularies.load_from(folder, vocab_size)


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
  assert vocabularies.load_from(tmp_path / 'nowhere') is None
  assert read(tmp_path / 'model', model=None) is None
  config = {'tokenizer_class': 'T5Tokenizer'}
  assert read(tmp_path / 'settings', model=None, **config) is None


@pytest.mark.parametrize(
    'vocab_size, config, sentinels',
    [
        (None, {}, 100),
        (164, {}, 100),
        (163, {}, 0),  # there is no room for them
        (64, {}, 0),
        (None, {'extra_ids': 10}, 10),
        (None, {'extra_ids': 0}, 0),
        (None, {'additional_special_tokens': SENTINELS[:7]}, 7),
        (None, {'extra_special_tokens': {'x': '<extra_id_0>'}}, 1),
        (
            None,
            {'additional_special_tokens': [{'content': '<extra_id_0>'}]},
            1,
        ),
        (None, {'additional_special_tokens': None, 'extra_ids': 3}, 3),
    ],
)
def test_sentinels_of_t5_follow_the_pieces(
    tmp_path, vocab_size, config, sentinels
):
  vocabulary = read(tmp_path / 'model', vocab_size, **config)
  assert vocabulary.vocab_size == 64 + sentinels
  if sentinels:
    assert vocabulary.decode([63 + sentinels]) == '<extra_id_0>'


def test_sentinels_may_be_listed_in_other_files(tmp_path):
  folder = tmp_path / 'model'
  tiny_tokenizers.hugging_face_folder(folder, UNIGRAM)
  (folder / 'special_tokens_map.json').write_text(
      json.dumps({'additional_special_tokens': SENTINELS[:5]})
  )
  assert vocabularies.load_from(folder).vocab_size == 69
  (folder / 'special_tokens_map.json').unlink()
  listed = {'<extra_id_1>': 64, '<extra_id_0>': 65}
  (folder / 'added_tokens.json').write_text(json.dumps(listed))
  assert vocabularies.load_from(folder).vocab_size == 66


def test_sentinels_in_the_model_file_are_not_added_again(tmp_path):
  model = tiny_tokenizers.unigram(byte_fallback=True, sentinels=100)
  assert read(tmp_path / 'model', 512, model).vocab_size == 420


@pytest.mark.parametrize('name', ['sentencepiece.model', 'any.model'])
def test_the_model_file_may_have_other_names(tmp_path, name):
  (tmp_path / name).write_bytes(UNIGRAM)
  vocabulary = vocabularies.load_from(tmp_path, 164)
  assert vocabulary.vocab_size == 164
  (tmp_path / 'other.model').write_bytes(UNIGRAM)
  if name == 'any.model':
    with pytest.raises(errors.UserError, match='several.*any.model, other'):
      vocabularies.load_from(tmp_path)
  else:
    assert vocabularies.load_from(tmp_path).vocab_size == 164


@pytest.mark.parametrize(
    'vocab_size, config, sentinels',
    [
        (None, {}, 125),
        (384, {}, 125),
        (300, {}, 0),
        (None, {'extra_ids': 0}, 0),
        (None, {'extra_ids': 100}, 100),
        # As transformers saves it.
        (None, {'extra_ids': 0, 'extra_special_tokens': SENTINELS}, 100),
        (
            None,
            {
                'added_tokens_decoder': {
                    '0': {'content': '<pad>'},
                    '259': {'content': '<extra_id_0>'},
                    '260': {'content': '<sep>'},
                }
            },
            2,
        ),
    ],
)
def test_byt5_is_known_by_its_class(tmp_path, vocab_size, config, sentinels):
  config = {'tokenizer_class': 'ByT5Tokenizer'} | config
  vocabulary = read(tmp_path / 'model', vocab_size, None, **config)
  assert vocabulary.vocab_size == 259 + sentinels
  if sentinels:
    assert vocabulary.encode('a<extra_id_0>') == [100, 259]
  if sentinels == 2:
    assert vocabulary.encode('<sep>') == [260]


def test_byt5_may_be_named_in_the_configuration_of_the_model(tmp_path):
  (tmp_path / 'config.json').write_text('{"tokenizer_class": "ByT5Tokenizer"}')
  assert vocabularies.load_from(tmp_path, 384).vocab_size == 384


def test_tokens_that_were_added_need_the_tokenizer_json(tmp_path):
  added = {'64': {'content': '<extra_id_0>'}, '65': {'content': '<table>'}}
  folder = tmp_path / 'model'
  with pytest.raises(errors.UserError, match=r"65: '<table>'.*tokenizer.json"):
    read(folder, added_tokens_decoder=added)
  # A piece that was added again is cut out of the text before all else.
  with pytest.raises(errors.UserError, match="7: '▁a'"):
    read(tmp_path / 'again', added_tokens_decoder={'7': {'content': '▁a'}})
  # Sentinels elsewhere than where they are expected.
  with pytest.raises(errors.UserError, match='70:'):
    read(
        tmp_path / 'moved',
        added_tokens_decoder={'70': {'content': '<extra_id_0>'}},
    )


def test_of_two_tokenizers_the_one_with_all_tokens_is_taken(tmp_path):
  package = pytest.importorskip(
      'tokenizers',
      reason="needs tokenizers: pip install 'distillspec_jax[tokenizers]'",
  )
  folder = tiny_tokenizers.tokenizer_json(tmp_path / 'model')
  (folder / 'spiece.model').write_bytes(UNIGRAM)
  assert hasattr(vocabularies.load_from(folder), 'model')
  backend = package.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  backend.add_tokens(['<table>'])
  backend.save(str(folder / 'tokenizer.json'))
  (folder / 'added_tokens.json').write_text('{"<table>": 164}')
  vocabulary = vocabularies.load_from(folder, 256)
  assert vocabulary.vocab_size == 165
  assert vocabulary.encode('a<table>') == [7, 164]
  assert 'spiece.model' in vocabulary.files


def test_tokens_added_in_place_are_found_in_the_tokenizer_json_alone(tmp_path):
  package = pytest.importorskip(
      'tokenizers',
      reason="needs tokenizers: pip install 'distillspec_jax[tokenizers]'",
  )
  # As transformers 5 leaves a T5 folder after add_tokens and save_pretrained.
  folder = tiny_tokenizers.tokenizer_json(
      tmp_path / 'model', extra_special_tokens=SENTINELS
  )
  (folder / 'spiece.model').write_bytes(UNIGRAM)
  assert vocabularies.load_from(folder).encode('a<table>')[0] == 7
  assert vocabularies.load_from(folder).vocab_size == 164
  backend = package.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  backend.add_tokens(['<table>', '{'])
  backend.save(str(folder / 'tokenizer.json'))
  vocabulary = vocabularies.load_from(folder)
  assert vocabulary.vocab_size == 166
  assert vocabulary.encode('a<table>{') == [7, 164, 165]


def test_a_tokenizer_json_of_another_model_is_refused(tmp_path):
  folder = tiny_tokenizers.tokenizer_json(tmp_path / 'a', eos_token='▁the')
  with pytest.raises(errors.UserError, match="eos_token '▁the' as 4"):
    vocabularies.load_from(folder)
  folder = tiny_tokenizers.tokenizer_json(
      tmp_path / 'b', pad_token={'content': '[PAD]'}
  )
  with pytest.raises(errors.UserError, match=r"pad_token '\[PAD\]' as None"):
    vocabularies.load(folder / 'tokenizer.json')


def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path):
  proto = sentencepiece_model_pb2.ModelProto.FromString(UNIGRAM)
  del proto.pieces[0]
  path = tmp_path / 'other.model'
  path.write_bytes(proto.SerializeToString())
  with pytest.raises(errors.UserError, match='pad_id=0'):
    vocabularies.load(path)
  path.write_bytes(b'')
  with pytest.raises(errors.UserError, match='without pieces'):
    vocabularies.load(path)
  path.write_bytes(b'not a model')
  with pytest.raises(errors.UserError, match='is not a SentencePiece model'):
    vocabularies.load(path)
  path.write_bytes(UNIGRAM[: len(UNIGRAM) // 2])
  with pytest.raises(errors.UserError, match='SentencePiece model'):
    vocabularies.load(path)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('tokenizer_config.json', '{', 'is not JSON'),
        ('tokenizer_config.json', '[]', 'not a JSON object'),
        ('added_tokens.json', '{"<a>": "x"}', 'fetch it again'),
        ('tokenizer_config.json', '{"eos_token": {"a": 1}}', 'fetch it again'),
        ('tokenizer.json', '{', 'is not JSON'),
        ('tokenizer.json', '{"added_tokens": [3]}', 'fetch it again'),
    ],
)
def test_damaged_settings_are_named(tmp_path, name, content, message):
  (tmp_path / 'spiece.model').write_bytes(UNIGRAM)
  (tmp_path / name).write_text(content)
  with pytest.raises(errors.UserError, match=message):
    vocabularies.load_from(tmp_path)


def test_a_damaged_tokenizer_json_is_named(tmp_path):
  pytest.importorskip(
      'tokenizers',
      reason="needs tokenizers: pip install 'distillspec_jax[tokenizers]'",
  )
  for content in ('{', '{}', '{"model": {"vocab": {}}, "added_tokens": []}'):
    (tmp_path / 'tokenizer.json').write_text(content)
    with pytest.raises(errors.UserError, match='is not a tokenizer.json that'):
      vocabularies.load_from(tmp_path)


def test_more_pieces_than_rows_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='64 pieces.*only 63 rows'):
    read(tmp_path / 'a', 63)
  with pytest.raises(errors.UserError, match='164 pieces.*only 100 rows'):
    read(tmp_path / 'b', 100, extra_ids=100)
  bytes_ = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 0}
  with pytest.raises(errors.UserError, match='259 pieces.*only 258 rows'):
    read(tmp_path / 'c', 258, None, **bytes_)


def test_tokens_among_the_bytes_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match=r'\[300\]'):
    read(
        tmp_path / 'model',
        model=None,
        tokenizer_class='ByT5Tokenizer',
        added_tokens_decoder={'300': {'content': '<extra_id_0>'}},
    )
