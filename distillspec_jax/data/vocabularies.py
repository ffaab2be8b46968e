"""Text <-> tokens: bytes, a SentencePiece model, or a tokenizer.json.

Vocabularies are loaded, saved, compared and trained here; vocabulary_kinds.py
has their classes. Each model folder holds its vocabulary, so that it can read
and write text by itself, and the tokenizer files of Hugging Face that it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import hashlib
import io
import json
import os

from etils import epath

from distillspec_jax.core import cache
from distillspec_jax.core import check
from distillspec_jax.core import checksums
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.data import hugging_face_tokenizer
from distillspec_jax.data import vocabulary_kinds

Vocabulary = vocabulary_kinds.Vocabulary

_FILE = 'vocabulary.json'
_MODEL = 'vocabulary.model'
# Enough text for a small vocabulary; more only takes longer.
_TRAINING_CHARACTERS = 2_000_000


def load(
    spec: str | os.PathLike[str] | Vocabulary, vocab_size: int | None = None
) -> Vocabulary:
  """The vocabulary that `spec` names.

  Args:
    spec: 'bytes'; a SentencePiece .model file, which is taken as it is, without
      sentinels that are not in it; a tokenizer.json; or a folder as in `load`:
      a model's, a run's, or one of Hugging Face, local or remote. A vocabulary
      is returned as it is, one of seqio as one of ours.
    vocab_size: embedding rows of the model that reads with it, if known.

  Raises:
    UserError: there is nothing, or it is no vocabulary, or it has more pieces
      than the model has rows.
  """
  if isinstance(spec, (str, os.PathLike)):
    vocabulary = _load(os.fspath(spec))
  else:
    vocabulary = vocabulary_kinds.from_seqio(spec)
  hugging_face_tokenizer.check_size(vocabulary, vocab_size, spec)
  return vocabulary


def _load(spec: str) -> Vocabulary:
  if spec == 'bytes':
    return vocabulary_kinds.Bytes()
  path = epath.Path(sources.expanded(spec))
  if not path.exists() and '/' in spec and not path.suffix:
    path = sources.resolve(spec)  # perhaps a repository's name
  if path.is_dir():
    vocabulary = load_from(path)
    if vocabulary is not None:
      return vocabulary
  if not path.exists() or path.is_dir():
    raise errors.UserError(
        f"The vocabulary {spec!r} is neither 'bytes', nor a SentencePiece"
        ' .model file, nor a tokenizer.json, nor a folder with one of them.'
    )
  if path.suffix == '.json':
    return hugging_face_tokenizer.read_tokenizer_json(path)
  return vocabulary_kinds.SentencePiece(sources.read_bytes(path), str(path))


def load_from(
    folder: str | os.PathLike[str], vocab_size: int | None = None
) -> Vocabulary | None:
  """The vocabulary in a model's folder, or None where it has none.

  Args:
    folder: a model folder, a run's folder, or one of Hugging Face; there the
      tokenizer.json, or else the SentencePiece model, or else ByT5's bytes
      are taken, with the sentinels that transformers gives them.
    vocab_size: embedding rows of the model, if known; decides whether it has
      sentinels where no file does.

  Raises:
    UserError: a file is damaged, or there are more pieces than rows.
  """
  folder = epath.Path(os.fspath(folder))
  for place in (folder, folder / 'best', folder / 'vocabulary'):
    if (place / _FILE).exists():
      vocabulary = _load_own(place)
      hugging_face_tokenizer.check_size(vocabulary, vocab_size, place)
      return vocabulary
  return hugging_face_tokenizer.read(folder, vocab_size)


def save(vocabulary: Vocabulary, folder: str | os.PathLike[str]) -> None:
  """Writes the vocabulary into a model folder, from which it loads the same.

  The Hugging Face tokenizer files that it came with are kept, byte for byte.
  """
  folder = epath.Path(os.fspath(folder))
  vocabulary = vocabulary_kinds.from_seqio(vocabulary)
  files = vocabulary.files
  match vocabulary:
    case vocabulary_kinds.SentencePiece(model=model, extra_ids=extra_ids):
      name = next((n for n in files if files[n] == model), _MODEL)
      (folder / name).write_bytes(model)
      values = {'kind': 'sentencepiece', 'extra_ids': extra_ids, 'model': name}
    case vocabulary_kinds.Tokenizers():
      values = {'kind': 'tokenizers'}
    case vocabulary_kinds.Bytes(tokens=tokens):
      values = {'kind': 'bytes'} | ({'tokens': tokens} if tokens else {})
  if files:
    values['files'] = list(files)
  _write_files(files, folder)
  (folder / _FILE).write_text(json.dumps(values) + '\n')


def save_hugging_face(
    vocabulary: Vocabulary | None, folder: str | os.PathLike[str]
) -> None:
  """Writes tokenizer files that transformers' AutoTokenizer reads.

  They are those that the vocabulary came with, byte for byte. One that was made
  here gets new ones: 'bytes' are ByT5Tokenizer's; a unigram model like T5's is
  T5Tokenizer's; any other SentencePiece model is put into a tokenizer.json,
  next to the model itself. The ids of a text are then the same as here, but for
  text that spells '</s>', '<pad>' or '<unk>', which transformers reads as these
  tokens, and for rare differences between tokenizers and SentencePiece: see
  tokenizer_json.from_sentencepiece.

  Args:
    vocabulary: None writes nothing.
    folder: of the model.

  Raises:
    UserError: the kind of model has no counterpart there.
  """
  if vocabulary is None:
    return
  folder = epath.Path(os.fspath(folder))
  vocabulary = vocabulary_kinds.from_seqio(vocabulary)
  _write_files(vocabulary.files, folder)
  enough = {hugging_face_tokenizer.CONFIG, hugging_face_tokenizer.TOKENIZER}
  if not enough & set(vocabulary.files):
    hugging_face_tokenizer.write(
        folder, getattr(vocabulary, 'model', None), vocabulary.extra_ids
    )


def same(a: Vocabulary, b: Vocabulary) -> bool:
  """Whether every id stands for the same text in both.

  Pieces are compared by id. One vocabulary may have sentinels (<extra_id_N>)
  after all pieces of the other, which has nothing at these ids: T5 with and
  without its sentinels are the same, as are its SentencePiece model and its
  tokenizer.json. Scores and normalisation, which decide how text is cut into
  pieces, are not compared.
  """
  if a is b:
    return True
  pieces = (vocabulary_kinds.from_seqio(each).pieces for each in (a, b))
  short, long = sorted(pieces, key=len)
  return short == long[: len(short)] and all(
      map(vocabulary_kinds.is_sentinel, long[len(short) :])
  )


def size(vocabulary: Vocabulary) -> int:
  """Number of ids, sentinels included; rows of a model beyond are padding."""
  return len(vocabulary_kinds.from_seqio(vocabulary).pieces)


def _load_own(folder: epath.Path) -> Vocabulary:
  checksums.check(folder)
  try:
    values = json.loads(sources.read_bytes(folder / _FILE))
    kind = values['kind']
    files = {name: _content(folder, name) for name in values.get('files', ())}
    if kind == 'bytes':
      return vocabulary_kinds.Bytes(values.get('tokens', ()), files)
    if kind == 'sentencepiece':
      name = values.get('model', _MODEL)
      model, extra_ids = _content(folder, name), values.get('extra_ids', 0)
      return vocabulary_kinds.SentencePiece(
          model, str(folder / name), extra_ids, files
      )
    if kind == 'tokenizers':
      return hugging_face_tokenizer.from_files(files, folder)
  except errors.UserError:
    raise
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.UserError(
        f'The vocabulary in {folder} is damaged ({error!r}); write the model'
        ' again.'
    ) from error
  raise errors.UserError(
      f'{folder / _FILE} has a vocabulary of kind {kind!r}; this version knows'
      ' bytes, sentencepiece and tokenizers. Use a newer one.'
  )


def _content(folder: epath.Path, name: str) -> bytes:
  """The content of a file in the folder itself."""
  if set(name) & set('/\\') or name in ('', '.', '..'):
    raise ValueError(f'the file {name!r} is not in the folder')
  return sources.read_bytes(folder / name)


def _write_files(files: dict[str, bytes], folder: epath.Path) -> None:
  for name, content in files.items():
    (folder / name).write_bytes(content)


def train_sentencepiece(texts: Iterable[str], size: int) -> Vocabulary:
  """A SentencePiece vocabulary of the texts, which decodes them unchanged.

  Blanks, tabs and newlines survive a round trip; characters that the texts do
  not have are spelled in bytes. The model is cached by the content of the
  texts, so that it is trained once.

  Args:
    texts: the first 2 million characters are read.
    size: pieces, at least 512 (256 of them are the bytes).

  Raises:
    UserError: the size does not fit the texts.
  """
  check.at_least(
      512,
      max_value=2**20,
      vocabulary_size=size,
      hint="256 of them are the bytes; for fewer use vocabulary = 'bytes'",
  )
  sample = list(_first_characters(texts))
  digest = hashlib.sha256(f'{size}\0'.encode())
  for text in sample:
    digest.update(text.encode() + b'\0')
  name = f'{digest.hexdigest()[:16]}.model'
  model = cache.get('vocabularies', name, lambda: _train(sample, size))
  return vocabulary_kinds.SentencePiece(model, name)


def _first_characters(texts: Iterable[str]) -> Iterator[str]:
  left = _TRAINING_CHARACTERS
  for text in texts:
    if left <= 0:
      return
    yield text
    left -= len(text)


def _train(texts: list[str], size: int) -> bytes:
  import sentencepiece

  # To the trainer a newline ends a sentence, so it learns from lines; the
  # newline itself is a piece of its own.
  lines = [line for text in texts for line in text.split('\n') if line.strip()]
  if not lines:
    raise errors.UserError(
        'There is no text to train a vocabulary on; the training split has'
        ' only blanks.'
    )
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type='bpe',
        vocab_size=size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=['\n'],
        max_sentence_length=20_000,
        num_threads=1,
        minloglevel=2,
    )
  except RuntimeError as error:
    raise errors.UserError(
        f'A vocabulary of {size} pieces cannot be trained on this text of'
        f' {sum(map(len, lines))} characters; choose a smaller'
        f" vocabulary_size, or 'bytes'. (sentencepiece: {error})"
    ) from error
  return model.getvalue()
