import json

import pytest
from sentencepiece import sentencepiece_model_pb2
import tokenizers

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


# Ids that transformers 5.23 gives, of folders that have both files.


def saved(folder, added=(), change=lambda tokenizer, config: None):
  """As transformers 5 leaves a T5 folder after add_tokens and saving."""
  tiny_tokenizers.tokenizer_json(folder, extra_special_tokens=SENTINELS)
  (folder / 'spiece.model').write_bytes(UNIGRAM)
  path, config_path = (
      folder / 'tokenizer.json',
      folder / 'tokenizer_config.json',
  )
  backend = tokenizers.Tokenizer.from_file(str(path))
  backend.add_tokens(list(added))
  config = json.loads(config_path.read_text())
  tokenizer = json.loads(backend.to_str())
  change(tokenizer, config)
  path.write_text(json.dumps(tokenizer))
  config_path.write_text(json.dumps(config))
  return folder


def as_transformers_4(tokenizer, config):
  """Blanks are counted, which T5Tokenizer of transformers 5 undoes."""
  several = {'pattern': {'Regex': ' {2,}'}, 'content': '▁'}
  tokenizer['pre_tokenizer'] = {
      'type': 'Metaspace',
      'replacement': '▁',
      'prepend_scheme': 'always',
      'split': True,
  }
  tokenizer['normalizer'] = {
      'type': 'Sequence',
      'normalizers': [
          tokenizer['normalizer'],
          {'type': 'Replace', **several},
      ],
  }
  config['additional_special_tokens'] = config.pop('extra_special_tokens')


def with_listed_tokens(tokenizer, config):
  as_transformers_4(tokenizer, config)
  names = ['<pad>', '</s>', '<unk>']
  listed = dict(enumerate(names)) | {
      163 - i: name for i, name in enumerate(SENTINELS)
  }
  config['added_tokens_decoder'] = {
      str(i): {'content': name, 'lstrip': i > 2, 'special': True}
      for i, name in {**listed, 164: '<new>'}.items()
  }


def of_the_general_class(tokenizer, config):
  as_transformers_4(tokenizer, config)
  config['tokenizer_class'] = 'PreTrainedTokenizerFast'
  config['unk_token'] = '<unk>'


AWKWARD = {
    '': [],
    '  ': [],
    'the<extra_id_0>.': [4, 163, 3, 46],
    '<extra_id_0>the<extra_id_1>draft': [163, 4, 162, 5],
    'a  <extra_id_0>  draft': [7, 163, 5],
    ' the\n\tdraft ': [4, 5],
    'a\xa0\u3000draft': [7, 5],
    'a\u200bdraft': [7, 5],
    'the{draft}': [4, 2, 23, 20, 15, 27, 14, 2],
    'ｔｈｅ': [4],
    'ﬁ': [12, 17],
    'e\u0301': [3, 2],
    '▁the': [4],
    '<EXTRA_ID_0>': [3, 42, 2, 40, 2, 39, 45, 2, 41, 45, 54, 43],
    'the </s': [4, 3, 42, 44, 19],
    '\0the': [3, 2, 14, 21, 13],
}
ADDED = {
    **AWKWARD,
    'the{draft}': [4, 165, 5, 2],
    'draft<table>ing': [5, 164, 3, 10],
    'a [L] the': [7, 166, 4],
    'a [R] the': [7, 167, 4],
    'the[W] [W] a[W]': [4, 2, 168, 7, 2],
}
COUNTED = {
    **AWKWARD,
    '  ': [3],
    'a  <extra_id_0>  draft': [7, 3, 163, 5],
    ' the\n\tdraft ': [4, 5, 3],
}


def added_tokens():
  return [
      '<table>',
      '{',
      tokenizers.AddedToken('[L]', lstrip=True),
      tokenizers.AddedToken('[R]', rstrip=True),
      tokenizers.AddedToken('[W]', single_word=True),
  ]


@pytest.mark.parametrize(
    'has_added, change, size, expected',
    [
        (False, lambda *_: None, 164, AWKWARD),
        (True, lambda *_: None, 169, ADDED),
        (False, as_transformers_4, 164, AWKWARD),
        (False, with_listed_tokens, 165, AWKWARD | {'a<new>': [7, 164]}),
        (False, of_the_general_class, 164, COUNTED),
    ],
)
def test_ids_are_those_of_transformers(
    tmp_path, has_added, change, size, expected
):
  folder = saved(tmp_path / 'a', added_tokens() if has_added else (), change)
  vocabulary = vocabularies.load_from(folder, 256)
  assert vocabulary.vocab_size == size
  assert {text: vocabulary.encode(text) for text in expected} == expected
  assert vocabulary.files['spiece.model'] == UNIGRAM
  # A model folder of ours keeps them.
  own = tmp_path / 'own'
  own.mkdir()
  vocabularies.save(vocabulary, own)
  again = vocabularies.load_from(own)
  assert {text: again.encode(text) for text in expected} == expected


def wrong_id(tokenizer, config):
  del config
  tokenizer['added_tokens'][-1]['id'] = 10**9


def other_id(tokenizer, config):
  del config
  tokenizer['added_tokens'][-1]['id'] = 170


@pytest.mark.parametrize(
    'change, message',
    [
        (wrong_id, 'ids from 0 to 1000000000, but at most 10000000'),
        (other_id, "the added token '<table>' has another id|got: 170"),
    ],
)
def test_added_tokens_of_wrong_ids_are_refused(tmp_path, change, message):
  folder = saved(tmp_path / 'a', ['<table>'], change)
  with pytest.raises(errors.UserError, match=message):
    vocabularies.load_from(folder)


@pytest.mark.parametrize('extra_ids', [10**9, -1, '100'])
def test_a_wrong_number_of_sentinels_is_refused(tmp_path, extra_ids):
  with pytest.raises(errors.UserError, match='config.json.extra_ids is .*must'):
    read(tmp_path / 'model', extra_ids=extra_ids)


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
        ('tokenizer.json', '{', 'is not a tokenizer.json that'),
        ('tokenizer.json', '{"added_tokens": [3]}', 'is not a tokenizer.json'),
    ],
)
def test_damaged_settings_are_named(tmp_path, name, content, message):
  (tmp_path / 'spiece.model').write_bytes(UNIGRAM)
  (tmp_path / name).write_text(content)
  with pytest.raises(errors.UserError, match=message):
    vocabularies.load_from(tmp_path)


def test_a_damaged_tokenizer_json_is_named(tmp_path):
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
