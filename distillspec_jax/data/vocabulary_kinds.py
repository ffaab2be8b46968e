"""The kinds of vocabularies: bytes, SentencePiece and tokenizer.json.

In each, pad is 0 and EOS is 1. An id that stands for no text, such as one of a
padding row of the embeddings, decodes to nothing. Text that spells a sentinel
is encoded as the sentinel ('<extra_id_0>'; by SentencePiece only where a word
starts); text that spells a control token, such as '</s>', is only text.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
import re
import sys
from typing import Any, NamedTuple

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import lazy_imports
from distillspec_jax.data import tokenizer_json

PAD, EOS = 0, 1
_SENTINEL = re.compile(r'▁?<extra_id_\d+>')
_BYTE = re.compile('<0x([0-9A-F]{2})>')
_FIRST_BYTE, _BYTES = 3, 256


class Vocabulary(abc.ABC):
  """Text <-> ids.

  Attributes:
    pieces: what each id stands for; sentinels and control tokens are called the
      same in every kind, so that vocabularies can be compared.
    vocab_size: number of ids.
    unk_id: of the unknown piece, if there is one.
    extra_ids: number of sentinels after the pieces proper.
    files: name -> content of the Hugging Face tokenizer files that it came
      with, so that it outlives the folder; empty for one that was made here.
  """

  pad_id, eos_id = PAD, EOS

  def __init__(
      self,
      pieces: Iterable[str],
      unk_id: int | None,
      extra_ids: int = 0,
      files: Mapping[str, bytes] | None = None,
  ):
    pieces = list(map(one_name, pieces))
    pieces[: EOS + 1] = ['<pad>', '</s>']
    self.pieces = pieces
    self.unk_id = unk_id
    self.extra_ids = extra_ids
    self.files = dict(files or {})

  @property
  def vocab_size(self) -> int:
    return len(self.pieces)

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """The ids of a text, without EOS."""

  def encode_all(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
    """What `encode` makes of each text."""
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of the ids before the first EOS."""
    kept = []
    for i in map(int, ids):
      if i == EOS:
        break
      if PAD < i < self.vocab_size:
        kept.append(i)
    return self._decode(kept)

  @abc.abstractmethod
  def _decode(self, ids: Sequence[int]) -> str:
    """The text of ids that all stand for text."""

  @abc.abstractmethod
  def definition(self) -> Any:
    """What decides how text is encoded and decoded."""

  def __eq__(self, other: object) -> bool:
    return (
        isinstance(other, Vocabulary)
        and type(self) is type(other)
        and self.definition() == other.definition()
    )

  __hash__ = None


class SentencePiece(Vocabulary):
  """The vocabulary of a SentencePiece model, which is not read from its file.

  Attributes:
    model: content of the .model file.
    extra_ids: sentinels after its pieces, in T5's order: <extra_id_0> is last.

  Raises:
    UserError: it is not a SentencePiece model, or pad is not 0 and EOS 1. The
      message calls it `name`.
  """

  def __init__(
      self,
      model: bytes,
      name: str,
      extra_ids: int = 0,
      files: Mapping[str, bytes] | None = None,
  ):
    import sentencepiece

    self.model = model
    check_extra_ids(extra_ids, name)
    proto = tokenizer_json.parse(model, name)
    for i in reversed(range(extra_ids)):
      proto.pieces.add(
          piece=f'▁<extra_id_{i}>',  # where a word starts, as in seqio
          score=0.0,
          type=tokenizer_json.USER_DEFINED,
      )
    self._proto = proto.SerializeToString()
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      with lazy_imports.quiet():
        self._processor.LoadFromSerializedProto(self._proto)
    except RuntimeError as error:
      raise errors.UserError(
          f'{name} is an incomplete SentencePiece model: {error}'
      ) from error
    pieces = [piece.piece for piece in proto.pieces]
    super().__init__(pieces, self._processor.unk_id(), extra_ids, files)

  def encode(self, text: str) -> list[int]:
    return self._processor.EncodeAsIds(text)

  def encode_all(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
    return self._processor.EncodeAsIds(list(texts))  # in threads

  def _decode(self, ids: Sequence[int]) -> str:
    return self._processor.DecodeIds(ids)

  def definition(self) -> bytes:
    return self._proto


class Bytes(Vocabulary):
  """The vocabulary of bytes, which are 3 to 258, and of `tokens` after them."""

  def __init__(
      self, tokens: Iterable[str] = (), files: Mapping[str, bytes] | None = None
  ):
    self.tokens = tuple(tokens)
    longest_first = sorted(self.tokens, key=len, reverse=True)
    self._split = re.compile(f'({"|".join(map(re.escape, longest_first))})')
    start = _FIRST_BYTE + _BYTES
    self._ids = {token: i for i, token in enumerate(self.tokens, start)}
    pieces = ['<pad>', '</s>', '<unk>']
    pieces += [f'<0x{byte:02X}>' for byte in range(_BYTES)]
    super().__init__([*pieces, *self.tokens], 2, len(self.tokens), files)

  def encode(self, text: str) -> list[int]:
    ids = []
    for part in self._split.split(text) if self.tokens else [text]:
      if part in self._ids:
        ids.append(self._ids[part])
      else:
        ids += [_FIRST_BYTE + byte for byte in part.encode()]
    return ids

  def _decode(self, ids: Sequence[int]) -> str:
    start = _FIRST_BYTE + _BYTES
    text = bytearray()
    for i in ids:
      if i >= start:
        text += self.tokens[i - start].encode()
      elif i >= _FIRST_BYTE:
        text.append(i - _FIRST_BYTE)
    # Sampled bytes may break off inside a character.
    return text.decode(errors='ignore')

  def definition(self) -> tuple[str, ...]:
    return self.tokens


class Tokenizers(Vocabulary):
  """The vocabulary of a tokenizer.json's text, by the package tokenizers.

  Attributes:
    raw_pieces: as `pieces`, with the file's own names of control tokens.

  Args:
    text: of the tokenizer.json.
    name: for messages.
    files: see `Vocabulary`.
    prepare: text -> text that is read instead.

  Raises:
    UserError: the package cannot read it. The message calls it `name`.
  """

  def __init__(
      self,
      text: str,
      name: str,
      files: Mapping[str, bytes] | None = None,
      prepare: Callable[[str], str] = str,
  ):
    import tokenizers

    try:
      readable = tokenizer_json.readable(prepare(text))
      self._backend = tokenizers.Tokenizer.from_str(readable.text)
      for i, token in self._backend.get_added_tokens_decoder().items():
        if readable.pieces[i] != token.content:
          raise ValueError(f'the added token {token.content!r} has another id')
    except Exception as error:  # the package raises plain Exception
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
      raise errors.UserError(
          f'{name} is not a tokenizer.json that tokenizers'
          f' {tokenizers.__version__} can read ({reason}).'
      ) from error
    self.raw_pieces = readable.pieces
    super().__init__(readable.pieces, readable.unknown, files=files)

  def encode(self, text: str) -> list[int]:
    return self._backend.encode(text, add_special_tokens=False).ids

  def encode_all(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
    encoded = self._backend.encode_batch_fast(  # in threads
        list(texts), add_special_tokens=False
    )
    return [each.ids for each in encoded]

  def _decode(self, ids: Sequence[int]) -> str:
    return self._backend.decode(ids, skip_special_tokens=False)

  def definition(self) -> str:
    return self._backend.to_str()


def check_extra_ids(extra_ids: Any, where: Any) -> None:
  """Raises UserError unless it is a plausible number of sentinels."""
  check.at_least(0, owner=str(where), max_value=10_000, extra_ids=extra_ids)


def is_sentinel(piece: str) -> bool:
  return _SENTINEL.fullmatch(piece) is not None


def one_name(piece: str) -> str:
  """The piece; of a sentinel the form without a blank before it."""
  return piece.removeprefix('▁') if is_sentinel(piece) else piece


def from_seqio(vocabulary: Any) -> Vocabulary:
  """The vocabulary itself, or one of seqio's classes as one of ours.

  Raises:
    UserError: it is something else, or a class of seqio's without counterpart.
  """
  if hasattr(vocabulary, 'pieces'):
    return vocabulary
  seqio = sys.modules.get('seqio')  # imported by whoever made one of its own
  if seqio and isinstance(vocabulary, seqio.SentencePieceVocabulary):
    # seqio's changes to the model are sentinels, which are not part of `model`
    # here if they are in T5's order, and perhaps another normalizer.
    name, count = vocabulary.sentencepiece_model_file, vocabulary.extra_ids
    proto = tokenizer_json.parse(vocabulary.sp_model, name)
    if count and proto.pieces[-1].piece == '▁<extra_id_0>':
      del proto.pieces[-count:]
    else:
      count = 0
    return SentencePiece(proto.SerializeToString(), name, count)
  if seqio and isinstance(vocabulary, seqio.ByteVocabulary):
    # In seqio, where sentinels have no text, <extra_id_0> is the last.
    count = vocabulary.extra_ids
    return Bytes(f'<extra_id_{i}>' for i in reversed(range(count)))
  raise errors.UserError(
      f'{vocabulary!r} is not a vocabulary; it must be one that'
      " vocabularies.load returns, or seqio's for SentencePiece or bytes."
  )


class Surfaces(NamedTuple):
  """What each id adds to a text, in UTF-8; nothing for control tokens.

  Attributes:
    later: after other text.
    first: at the start of the text, where a blank may be dropped; None if the
      text has still to start after it.
  """

  later: list[bytes]
  first: list[bytes | None]


def surfaces(vocabulary: Vocabulary) -> Surfaces:
  """What each id spells, such that ids together spell what `decode` gives."""
  vocabulary = from_seqio(vocabulary)
  decode, pieces = vocabulary.decode, vocabulary.pieces
  before = next(i for i in range(2, len(pieces)) if decode([i]).strip())
  start = len(decode([before]))
  later, first = [], []
  for i, name in enumerate(pieces):
    shown = decode([before, i])[start:]
    byte = _BYTE.fullmatch(name)
    if byte and shown != name:  # part of a character cannot be shown
      later.append(bytes([int(byte.group(1), 16)]))
      first.append(later[-1])
    else:
      later.append(shown.encode())
      first.append(decode([i]).encode())
  later[PAD] = later[EOS] = first[PAD] = first[EOS] = b''
  # A piece that loses its blank at the start of a text shows which ids leave
  # the text still to start: after those it loses its blank, too.
  probe = [i for i, (a, b) in enumerate(zip(first, later)) if b'' != a != b]
  for i, surface in enumerate(first):
    if not surface and not later[i]:
      first[i] = None
    elif not surface and probe:
      if decode([i, probe[0]]).encode() == first[probe[0]]:
        first[i] = None
  return Surfaces(later, first)
