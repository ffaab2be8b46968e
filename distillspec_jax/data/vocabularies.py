"""Text <-> tokens: bytes, or a SentencePiece model, one trained here if needed.

A vocabulary is seqio's: pad 0, EOS 1. It is written beside each model, so that
a model folder can read and write text by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
from typing import Any
from collections.abc import Iterable, Iterator

from distillspec_jax.core import errors

_FILE = 'vocabulary.json'
_MODEL = 'vocabulary.model'
# Enough text for a small vocabulary; more only takes longer.
_TRAINING_CHARACTERS = 2_000_000


def import_seqio() -> Any:
  """seqio, without the start-up messages of TensorFlow."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with quiet():
    import seqio
  return seqio


def import_tensorflow() -> Any:
  """TensorFlow, likewise."""
  import_seqio()
  import tensorflow

  return tensorflow


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps libraries' own log lines off the terminal; errors are raised still.

  TensorFlow and SentencePiece write to the file descriptor itself, which is
  pointed elsewhere meanwhile.
  """
  sys.stderr.flush()
  saved = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(nowhere)


def load(spec: str | os.PathLike[str]) -> Any:
  """The vocabulary 'bytes', or that of a SentencePiece .model file.

  Raises:
    UserError: there is no such file.
  """
  seqio = import_seqio()
  if spec == 'bytes':
    return seqio.ByteVocabulary()
  path = pathlib.Path(spec)
  if path.is_dir():
    found = load_from(path)
    if found is not None:
      return found
  if not path.is_file():
    raise errors.UserError(
        f"The vocabulary {str(spec)!r} is neither 'bytes', nor a SentencePiece"
        ' .model file, nor a model folder with a vocabulary.'
    )
  vocabulary = seqio.SentencePieceVocabulary(str(path), extra_ids=0)
  with quiet():  # reading the file is put off until the first use
    vocabulary.encode('')
  return vocabulary


def save(vocabulary: Any, folder: pathlib.Path) -> None:
  """Writes the vocabulary into a model folder."""
  kind = 'bytes'
  if hasattr(vocabulary, 'sentencepiece_model_file'):
    kind = 'sentencepiece'
    shutil.copyfile(vocabulary.sentencepiece_model_file, folder / _MODEL)
  (folder / _FILE).write_text(json.dumps({'kind': kind}) + '\n')


def load_from(folder: str | os.PathLike[str]) -> Any | None:
  """The vocabulary in a model folder, or None where it has none."""
  folder = pathlib.Path(folder)
  if not (folder / _FILE).is_file():
    if (folder / 'best' / _FILE).is_file():
      return load_from(folder / 'best')
    return None
  kind = json.loads((folder / _FILE).read_text())['kind']
  return load('bytes' if kind == 'bytes' else folder / _MODEL)


def same(a: Any, b: Any) -> bool:
  """Whether every number stands for the same text in both."""
  model = 'sentencepiece_model_file'
  if hasattr(a, model) != hasattr(b, model):
    return False
  if not hasattr(a, model):
    return a.vocab_size == b.vocab_size
  read = lambda v: pathlib.Path(getattr(v, model)).read_bytes()
  return read(a) == read(b)


def train_sentencepiece(texts: Iterable[str], size: int) -> Any:
  """A SentencePiece vocabulary of the texts, which are kept to the letter.

  Blanks, tabs and newlines survive a round trip; characters that the texts do
  not have are spelled in bytes. The model is cached by the content of the
  texts, so that it is trained once.

  Args:
    texts: the first 2 million characters are read.
    size: pieces, at least 512 (256 of them are the bytes).

  Raises:
    UserError: the size does not fit the texts.
  """
  if size < 512:
    raise errors.UserError(
        f'vocabulary_size is {size}; it must be at least 512, of which 256 are'
        " the bytes. For fewer use vocabulary = 'bytes'."
    )
  sample = list(_first_characters(texts))
  digest = hashlib.sha256(f'{size}\0'.encode())
  for text in sample:
    digest.update(text.encode() + b'\0')
  path = cache_folder() / 'vocabularies' / f'{digest.hexdigest()[:16]}.model'
  if not path.is_file():
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f'.{os.getpid()}.new')
    beside.write_bytes(_train(sample, size))
    os.replace(beside, path)
  return load(path)


def cache_folder() -> pathlib.Path:
  """Where what can be made again is kept between runs."""
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'distillspec_jax'


def _first_characters(texts: Iterable[str]) -> Iterator[str]:
  left = _TRAINING_CHARACTERS
  for text in texts:
    if left <= 0:
      return
    yield text
    left -= len(text)


def _train(texts: list[str], size: int) -> bytes:
  import sentencepiece

  # A newline ends a sentence for the trainer, so it learns from lines; the
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
