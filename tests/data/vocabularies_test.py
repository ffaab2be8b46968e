import json
import shutil

from etils import epath
import hypothesis
from hypothesis import strategies
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import standard_library
from distillspec_jax.data import vocabularies
from tests.data import tiny_tokenizers

AWKWARD = [
    '',
    '  two blanks before, two behind  ',
    'tab\tand\nnew\n\nlines\r\n',
    'emoji 😀👩‍👩‍👧 and e\u0301 combining',
    'x' * 300,
    'def f(x):\n    return x  # ünïcode',
]


@pytest.fixture(scope='module')
def texts():
  pairs = standard_library.continuations('validation', 100, 100)
  return [text for pair in pairs for text in pair]


@pytest.fixture(scope='module')
def sentencepiece(texts, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield vocabularies.train_sentencepiece(texts, 600)


@pytest.mark.parametrize('text', AWKWARD)
def test_text_comes_back_from_pieces(sentencepiece, text):
  assert sentencepiece.decode(list(sentencepiece.encode(text))) == text


@hypothesis.given(
    strategies.text(
        strategies.characters(
            exclude_categories=['Cs'], exclude_characters='\0▁'
        )
    )
)
@hypothesis.settings(
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_text_comes_back_from_pieces(sentencepiece, text):
  assert sentencepiece.decode(list(sentencepiece.encode(text))) == text


@pytest.mark.parametrize('text', AWKWARD)
def test_text_comes_back_from_bytes(text):
  vocabulary = vocabularies.load('bytes')
  assert vocabulary.decode(list(vocabulary.encode(text))) == text


def test_special_tokens_and_size(sentencepiece):
  assert sentencepiece.vocab_size == 600
  assert sentencepiece.pad_id == 0
  assert sentencepiece.eos_id == 1
  assert 1 not in sentencepiece.encode('</s>')


def test_training_is_done_once_and_always_the_same(
    texts, sentencepiece, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  again = vocabularies.train_sentencepiece(texts, 600)
  assert vocabularies.same(again, sentencepiece)
  monkeypatch.setattr(vocabularies, '_train', lambda *_: pytest.fail('twice'))
  vocabularies.train_sentencepiece(texts, 600)


def test_a_folder_gives_back_what_was_saved(sentencepiece, tmp_path):
  assert vocabularies.load_from(tmp_path) is None
  vocabularies.save(sentencepiece, tmp_path)
  assert vocabularies.same(vocabularies.load_from(tmp_path), sentencepiece)
  assert vocabularies.same(vocabularies.load(tmp_path), sentencepiece)
  other = tmp_path / 'bytes'
  other.mkdir()
  vocabularies.save(vocabularies.load('bytes'), other)
  found = vocabularies.load_from(other)
  assert vocabularies.same(found, vocabularies.load('bytes'))
  assert not vocabularies.same(found, sentencepiece)


def test_bad_vocabularies_are_refused(texts, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with pytest.raises(errors.UserError, match='neither'):
    vocabularies.load('no/such.model')
  with pytest.raises(errors.UserError, match='at least 512'):
    vocabularies.train_sentencepiece(texts, 100)
  with pytest.raises(errors.UserError, match='cannot be trained'):
    vocabularies.train_sentencepiece(['too little text'], 4000)
  with pytest.raises(errors.UserError, match='no text'):
    vocabularies.train_sentencepiece(['', ' \n '], 600)


FOREIGN = ('t5', 'mt5', 'byt5', 'tokenizer_json')


def content(folder, names=None):
  return {
      file.name: file.read_bytes()
      for file in folder.iterdir()
      if file.is_file() and (names is None or file.name in names)
  }


def test_folders_of_earlier_versions_are_read(sentencepiece, tmp_path):
  (tmp_path / 'vocabulary.json').write_text('{"kind": "sentencepiece"}\n')
  (tmp_path / 'vocabulary.model').write_bytes(sentencepiece.model)
  assert vocabularies.same(vocabularies.load_from(tmp_path), sentencepiece)
  (tmp_path / 'vocabulary.json').write_text('{"kind": "bytes"}\n')
  found = vocabularies.load_from(tmp_path)
  assert vocabularies.same(found, vocabularies.load('bytes'))
  assert found.vocab_size == 259


def test_a_run_has_the_vocabulary_of_its_best_model(sentencepiece, tmp_path):
  (tmp_path / 'best').mkdir()
  vocabularies.save(sentencepiece, tmp_path / 'best')
  assert vocabularies.same(vocabularies.load(tmp_path), sentencepiece)


@pytest.mark.parametrize('kind', FOREIGN)
def test_files_of_a_tokenizer_come_back_byte_for_byte(kind, tmp_path):
  source = getattr(tiny_tokenizers, kind)(tmp_path / 'source')
  (source / 'special_tokens_map.json').write_bytes(b'{ }\r\n')
  (source / 'config.json').unlink()
  came = content(source)
  vocabulary = vocabularies.load_from(source, 512)
  assert vocabulary.files == came
  shutil.rmtree(source)  # nothing depends on it any more
  ours, again, theirs = (tmp_path / n for n in ('ours', 'again', 'theirs'))
  for folder in (ours, again, theirs):
    folder.mkdir()
  vocabularies.save(vocabulary, ours)
  assert content(ours, came) == came
  loaded = vocabularies.load_from(ours, 512)
  assert loaded.files == came
  vocabularies.save(loaded, again)
  assert content(again) == content(ours)
  vocabularies.save_hugging_face(loaded, theirs)
  assert content(theirs) == came
  for text in [*AWKWARD, 'a <extra_id_3> b']:
    assert loaded.encode(text) == vocabulary.encode(text)
  assert loaded == vocabulary
  assert vocabularies.same(loaded, vocabulary)


def test_a_t5_model_alone_gets_what_transformers_needs(tmp_path):
  path = tmp_path / 'some.model'
  path.write_bytes(tiny_tokenizers.unigram())
  vocabulary = vocabularies.load(path)
  assert vocabulary.vocab_size == 64  # no sentinels but those in the file
  theirs = tmp_path / 'theirs'
  theirs.mkdir()
  vocabularies.save_hugging_face(vocabulary, theirs)
  assert sorted(content(theirs)) == ['spiece.model', 'tokenizer_config.json']
  config = json.loads((theirs / 'tokenizer_config.json').read_text())
  assert config['tokenizer_class'] == 'T5Tokenizer'
  assert config['extra_ids'] == 0
  assert (theirs / 'spiece.model').read_bytes() == path.read_bytes()
  assert vocabularies.load_from(theirs) == vocabulary


def test_sentinels_without_settings_are_written_down(tmp_path):
  source = tiny_tokenizers.hugging_face_folder(
      tmp_path / 'source', tiny_tokenizers.unigram()
  )
  vocabulary = vocabularies.load_from(source, 128)  # no room for sentinels
  theirs = tmp_path / 'theirs'
  theirs.mkdir()
  vocabularies.save_hugging_face(vocabulary, theirs)
  assert vocabularies.load_from(theirs) == vocabulary
  assert vocabularies.load_from(source).vocab_size == 164


def test_a_vocabulary_made_here_gets_a_tokenizer_json(sentencepiece, tmp_path):
  vocabularies.save_hugging_face(sentencepiece, tmp_path)
  assert sorted(content(tmp_path)) == [
      'spiece.model',
      'tokenizer.json',
      'tokenizer_config.json',
  ]
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert vocabularies.load_from(tmp_path) == sentencepiece
  (tmp_path / 'spiece.model').unlink()
  fast = vocabularies.load_from(tmp_path)
  assert vocabularies.same(fast, sentencepiece)
  for text in AWKWARD:
    assert fast.encode(text) == sentencepiece.encode(text)
    assert fast.decode(fast.encode(text)) == text


def test_bytes_made_here_are_those_of_byt5(tmp_path):
  vocabularies.save_hugging_face(vocabularies.load('bytes'), tmp_path)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert config == {'extra_ids': 0, 'tokenizer_class': 'ByT5Tokenizer'}
  assert vocabularies.load_from(tmp_path) == vocabularies.load('bytes')


def test_no_vocabulary_writes_nothing(tmp_path):
  vocabularies.save_hugging_face(None, tmp_path)
  assert not content(tmp_path)


def test_the_same_pieces_are_the_same_vocabulary(sentencepiece, tmp_path):
  t5 = vocabularies.load(tiny_tokenizers.t5(tmp_path / 't5'))
  bare = vocabularies.load(tmp_path / 't5' / 'spiece.model')
  fewer = vocabularies.load(tiny_tokenizers.t5(tmp_path / 'few', extra_ids=9))
  mt5 = vocabularies.load(tiny_tokenizers.mt5(tmp_path / 'mt5'))
  byt5 = vocabularies.load(tiny_tokenizers.byt5(tmp_path / 'byt5'))
  bytes_ = vocabularies.load('bytes')
  assert vocabularies.same(t5, bare)
  assert vocabularies.same(bare, fewer)
  # <extra_id_0> has another number.
  assert not vocabularies.same(t5, fewer)
  assert vocabularies.same(byt5, bytes_)
  # Bytes are the first pieces of it; what follows is text.
  assert sentencepiece.vocab_size > 259
  assert not vocabularies.same(bytes_, sentencepiece)
  different = [t5, mt5, byt5, sentencepiece]
  for i, a in enumerate(different):
    assert vocabularies.same(a, a)
    for b in different[:i]:
      assert not vocabularies.same(a, b)
      assert not vocabularies.same(b, a)
      assert a != b


def test_a_tokenizer_json_is_the_same_as_its_sentencepiece_model(tmp_path):
  fast = vocabularies.load(tiny_tokenizers.tokenizer_json(tmp_path / 'fast'))
  t5 = vocabularies.load(tiny_tokenizers.t5(tmp_path / 't5'))
  assert vocabularies.same(fast, t5)
  file = vocabularies.load(tmp_path / 'fast' / 'tokenizer.json')
  assert file == fast
  assert file.files == fast.files


def test_vocabularies_of_seqio_itself_are_taken(sentencepiece, tmp_path):
  seqio = pytest.importorskip('seqio', reason=tiny_tokenizers.NEEDS_SEQIO)
  path = tmp_path / 'my.model'
  path.write_bytes(sentencepiece.model)
  theirs = seqio.SentencePieceVocabulary(str(path), extra_ids=0)
  assert vocabularies.load(theirs) == sentencepiece
  assert vocabularies.same(theirs, sentencepiece)
  vocabularies.save(theirs, tmp_path)
  assert vocabularies.load_from(tmp_path) == sentencepiece
  assert vocabularies.same(seqio.ByteVocabulary(), vocabularies.load('bytes'))
  vocabularies.save(seqio.ByteVocabulary(extra_ids=2), tmp_path)
  assert vocabularies.load_from(tmp_path).decode([259, 260]) == (
      '<extra_id_1><extra_id_0>'
  )


def test_sentinels_of_a_seqio_vocabulary_keep_their_ids(tmp_path):
  seqio = pytest.importorskip('seqio', reason=tiny_tokenizers.NEEDS_SEQIO)
  path = tmp_path / 'my.model'
  path.write_bytes(tiny_tokenizers.unigram())
  for reverse in (True, False):  # T5's order, and the other one
    theirs = seqio.SentencePieceVocabulary(
        str(path), extra_ids=9, reverse_extra_ids=reverse
    )
    ours = vocabularies.load(theirs)
    text = 'the <extra_id_0> draft <extra_id_8>'
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == theirs.vocab_size == 73


def test_what_is_no_vocabulary_is_refused():
  seqio = pytest.importorskip('seqio', reason=tiny_tokenizers.NEEDS_SEQIO)
  for wrong in (3, seqio.PassThroughVocabulary(8)):
    with pytest.raises(errors.UserError, match='is not a vocabulary'):
      vocabularies.load(wrong)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder that is also gs://bucket."""
  local = epath.backend.os_backend

  def redirect(name):
    function = getattr(local, name)
    here = lambda path: str(path).replace('gs://bucket', str(tmp_path))
    return lambda path, *args: function(here(path), *args)

  for remote in (epath.backend.tf_backend, epath.backend.fsspec_backend):
    for name in ('exists', 'isdir', 'listdir', 'open'):
      monkeypatch.setattr(remote, name, redirect(name))
  return tmp_path


def test_vocabularies_in_buckets_are_read(bucket):
  tiny_tokenizers.t5(bucket / 't5')
  t5 = vocabularies.load('gs://bucket/t5')
  assert t5.vocab_size == 164
  assert t5.encode('the draft') == [4, 5]
  bare = vocabularies.load('gs://bucket/t5/spiece.model')
  assert vocabularies.same(t5, bare)
  with pytest.raises(errors.UserError, match='gs://bucket/nothing'):
    vocabularies.load('gs://bucket/nothing')


@pytest.mark.parametrize(
    'text, message',
    [
        ('{', 'is damaged'),
        ('{}', 'is damaged'),
        ('{"kind": "sentencepiece"}', 'vocabulary.model cannot be read'),
        ('{"kind": "bytes", "files": ["gone.json"]}', 'gone.json cannot be'),
        ('{"kind": "runes"}', "kind 'runes'"),
    ],
)
def test_damaged_folders_are_named(tmp_path, text, message):
  (tmp_path / 'vocabulary.json').write_text(text)
  with pytest.raises(errors.UserError, match=message):
    vocabularies.load_from(tmp_path)


def test_more_pieces_than_rows_are_refused(sentencepiece, tmp_path):
  vocabularies.save(sentencepiece, tmp_path)
  assert vocabularies.load_from(tmp_path, 600).vocab_size == 600
  with pytest.raises(errors.UserError, match='600 pieces.*only 512 rows'):
    vocabularies.load_from(tmp_path, 512)
