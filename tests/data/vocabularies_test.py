import hypothesis
from hypothesis import strategies
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import standard_library
from distillspec_jax.data import vocabularies

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
    deadline=None,
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
