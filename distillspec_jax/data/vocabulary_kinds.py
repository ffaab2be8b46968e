"""The kinds of vocabularies: SentencePiece, bytes, and tokenizer.json.

Each is seqio's Vocabulary: pad 0, EOS 1, and a number that stands for no text,
such as that of a padding row, decodes to nothing. Text that spells a sentinel
is read as it ('<extra_id_0>'; with SentencePiece only where a word starts);
text that spells a control token, such as '</s>', is only text.

Beside seqio's, each has the attribute

  files   name -> content, of the tokenizer files of Hugging Face that it came
          with; empty for one that was made here

so that it does not depend on the folder that it was read from. seqio is slow
to import, so the classes are made when first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import functools
import re
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.data import lazy_imports
from distillspec_jax.data import tokenizer_json

PAD, EOS = 0, 1
SENTINEL = re.compile(r'▁?<extra_id_(\d+)>')
_BYTE = re.compile('<0x([0-9A-F]{2})>')
_FIRST_BYTE, _BYTES = 3, 256


def sentencepiece(
    model: bytes,
    name: str,
    extra_ids: int = 0,
    files: Mapping[str, bytes] | None = None,
) -> Any:
  """The vocabulary of a SentencePiece model; no file is read.

  Args:
    model: content of the .model file.
    name: of the file, for messages and for seqio.
    extra_ids: sentinels after the pieces, in T5's order: <extra_id_0> is last.
    files: see above.

  Raises:
    UserError: it is not a SentencePiece model, or pad is not 0 and EOS 1.
  """
  return _classes()['sentencepiece'](model, name, extra_ids, files)


def bytes_(
    tokens: Iterable[str] = (), files: Mapping[str, bytes] | None = None
) -> Any:
  """The vocabulary of bytes, which are 3 to 258, and of `tokens` after them."""
  return _classes()['bytes'](tokens, files)


def tokenizers(
    text: str, name: str, files: Mapping[str, bytes] | None = None
) -> Any:
  """The vocabulary of a tokenizer.json, by the package tokenizers.

  Raises:
    UserError: the package is not installed, or cannot read it.
  """
  try:
    import tokenizers as package
  except ImportError as error:
    raise errors.UserError(
        f'{name} is read by the package tokenizers, which is not installed; pip'
        ' install "distillspec_jax[tokenizers]".'
    ) from error
  try:
    tokenizer = tokenizer_json.readable(text)
    backend = package.Tokenizer.from_str(tokenizer.text)
  except Exception as error:  # the package raises plain Exception
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise errors.UserError(
        f'{name} is not a tokenizer.json that tokenizers {package.__version__}'
        f' can read ({reason}).'
    ) from error
  return _classes()['tokenizers'](
      backend, tokenizer.pieces, tokenizer.unknown, files
  )


def pieces(vocabulary: Any) -> list[str]:
  """What each number stands for; sentinels and controls by one name."""
  seqio = lazy_imports.import_seqio()
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    processor = vocabulary.tokenizer
    found = processor.id_to_piece(list(range(processor.get_piece_size())))
  elif isinstance(vocabulary, seqio.ByteVocabulary):
    found = ['<pad>', '</s>', '<unk>']
    found += [f'<0x{byte:02X}>' for byte in range(_BYTES)]
    # In seqio, where they have no text, <extra_id_0> is the last.
    count = vocabulary.extra_ids
    sentinels = [f'<extra_id_{i}>' for i in reversed(range(count))]
    found += getattr(vocabulary, 'tokens', sentinels)
  else:
    found = list(vocabulary.pieces)
  found[:2] = ['<pad>', '</s>']
  return list(map(one_name, found))


class Surfaces(NamedTuple):
  """What each number adds to a text, in UTF-8; nothing for control tokens.

  Attributes:
    later: where text stands before it.
    first: where none does, and a blank may not be shown; None if the text has
      still to begin after it.
  """

  later: list[bytes]
  first: list[bytes | None]


def surfaces(vocabulary: Any) -> Surfaces:
  """What each number spells, one after the other, as `decode` does it."""
  seqio = lazy_imports.import_seqio()
  if isinstance(vocabulary, seqio.ByteVocabulary):
    later = [b''] * _FIRST_BYTE + [bytes([byte]) for byte in range(_BYTES)]
    # seqio's own sentinels have no text.
    tokens = getattr(vocabulary, 'tokens', [''] * vocabulary.extra_ids)
    later += [token.encode() for token in tokens]
    return Surfaces(later, [surface or None for surface in later])
  decode = vocabulary.decode
  names = pieces(vocabulary)
  before = next(i for i in range(2, len(names)) if decode([i]).strip())
  start = len(decode([before]))
  later, first = [], []
  for number, name in enumerate(names):
    shown = decode([before, number])[start:]
    byte = _BYTE.fullmatch(name)
    if byte and shown != name:  # a part of a character cannot be shown
      later.append(bytes([int(byte.group(1), 16)]))
      first.append(later[-1])
    else:
      later.append(shown.encode())
      first.append(decode([number]).encode())
  later[PAD] = later[EOS] = first[PAD] = first[EOS] = b''
  probe = [i for i, (a, b) in enumerate(zip(first, later)) if b'' != a != b]
  for number, surface in enumerate(first):
    if not surface and not later[number]:
      first[number] = None
    elif not surface and probe:
      if decode([number, probe[0]]).encode() == first[probe[0]]:
        first[number] = None
  return Surfaces(later, first)


def one_name(piece: str) -> str:
  """The piece; of a sentinel the form without a blank before it."""
  if piece.startswith('▁<') and SENTINEL.fullmatch(piece):
    return piece[1:]
  return piece


def _text_of(ids: Iterable[int], size: int) -> list[int]:
  """The numbers up to the first EOS that stand for text."""
  found = []
  for number in map(int, ids):
    if number == EOS:
      break
    if PAD < number < size:
      found.append(number)
  return found


@functools.cache
def _classes() -> dict[str, Any]:
  seqio = lazy_imports.import_seqio()
  tf = lazy_imports.import_tensorflow()

  class InPython(seqio.Vocabulary):
    """Uses the same Python in TensorFlow's graphs, by a call back."""

    def _encode_tf(self, s):
      encode = lambda s: np.asarray(self.encode(s.numpy().decode()), np.int32)
      ids = tf.py_function(encode, [s], tf.int32)
      ids.set_shape([None])
      return ids

    def decode_tf(self, ids):
      def decode(ids):
        rows = ids.numpy().reshape(-1, ids.shape[-1])
        texts = tf.constant([self.decode(row) for row in rows], tf.string)
        return tf.reshape(texts, ids.shape[:-1])

      texts = tf.py_function(decode, [ids], tf.string)
      texts.set_shape(ids.shape[:-1])
      return texts

  class SentencePiece(seqio.SentencePieceVocabulary):

    def __init__(self, model, name, extra_ids, files):
      super().__init__(name, extra_ids=extra_ids)
      self.files = dict(files or {})
      self.model = model
      proto = tokenizer_json.parse(model, name)
      for i in reversed(range(extra_ids)):
        proto.pieces.add(
            piece=f'▁<extra_id_{i}>',  # where a word starts, as in seqio
            score=0.0,
            type=tokenizer_json.USER_DEFINED,
        )
      import sentencepiece as package

      self._proto = proto.SerializeToString()
      self._processor = package.SentencePieceProcessor()
      try:
        with lazy_imports.quiet():
          self._processor.LoadFromSerializedProto(self._proto)
      except RuntimeError as error:
        raise errors.UserError(
            f'{name} is not a whole SentencePiece model: {error}'
        ) from error

    @property
    def tokenizer(self):
      return self._processor

    @property
    def sp_model(self):
      return self._proto

    def decode(self, ids):
      return self._decode(_text_of(ids, self.vocab_size))

    def __eq__(self, other):
      return isinstance(other, SentencePiece) and self._proto == other._proto

    __hash__ = None

  class Bytes(InPython, seqio.ByteVocabulary):

    def __init__(self, tokens, files):
      self.tokens = tuple(tokens)
      super().__init__(extra_ids=len(self.tokens))
      self.files = dict(files or {})
      longest_first = sorted(self.tokens, key=len, reverse=True)
      self._split = re.compile(f'({"|".join(map(re.escape, longest_first))})')
      start = _FIRST_BYTE + _BYTES
      self._number = {token: i for i, token in enumerate(self.tokens, start)}

    def _encode_tf(self, s):
      if not self.tokens:
        return seqio.ByteVocabulary._encode_tf(self, s)
      return super()._encode_tf(s)

    def _encode(self, s):
      parts = self._split.split(s) if self.tokens else [s]
      ids = []
      for part in parts:
        if part in self._number:
          ids.append(self._number[part])
        else:
          ids += [_FIRST_BYTE + byte for byte in part.encode()]
      return ids

    def decode(self, ids):
      start = _FIRST_BYTE + _BYTES
      text = bytearray()
      for number in _text_of(ids, self.vocab_size):
        if number >= start:
          text += self.tokens[number - start].encode()
        elif number >= _FIRST_BYTE:
          text.append(number - _FIRST_BYTE)
      return text.decode('utf-8', errors='ignore')

    def __eq__(self, other):
      return isinstance(other, Bytes) and self.tokens == other.tokens

    __hash__ = None

  class Tokenizers(InPython):

    def __init__(self, backend, pieces, unknown, files):
      super().__init__()
      self.files = dict(files or {})
      self.pieces = pieces
      self._backend = backend
      self._unknown = unknown

    bos_id = property(lambda self: None)
    eos_id = property(lambda self: EOS)
    unk_id = property(lambda self: self._unknown)
    _base_vocab_size = property(lambda self: len(self.pieces))

    def _encode(self, s):
      return self._backend.encode(s, add_special_tokens=False).ids

    def _decode(self, ids):
      return self._backend.decode(ids, skip_special_tokens=False)

    def decode(self, ids):
      return self._decode(_text_of(ids, self.vocab_size))

    def _decode_tf(self, ids):
      return self.decode_tf(ids)

    def __eq__(self, other):
      return (
          isinstance(other, Tokenizers)
          and self._backend.to_str() == other._backend.to_str()
      )

    __hash__ = None

  return {
      'sentencepiece': SentencePiece,
      'bytes': Bytes,
      'tokenizers': Tokenizers,
  }
