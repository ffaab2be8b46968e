"""The tokenizer in a Hugging Face folder, as a vocabulary, and back.

The pieces of a T5 are spread over several files: the SentencePiece model has
the 32,000 pieces of text, the 100 sentinels after them are only in Hugging
Face's code, and tokens that were added later are in tokenizer.json or in the
settings. mT5's model has its sentinels itself; ByT5 has no file of pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any, NamedTuple

from etils import epath

from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.data import tokenizer_json
from distillspec_jax.data import vocabulary_kinds

TOKENIZER = 'tokenizer.json'
CONFIG = 'tokenizer_config.json'
_MODELS = ('spiece.model', 'sentencepiece.model')
_SETTINGS = (CONFIG, 'special_tokens_map.json', 'added_tokens.json')
_SENTINELS = 100  # of T5, where no file says
_BYT5_SENTINELS = 125
_T5_CLASSES = (None, 'T5Tokenizer', 'T5TokenizerFast')


def read(
    folder: epath.Path, vocab_size: int | None = None
) -> vocabulary_kinds.Vocabulary | None:
  """The vocabulary of a folder's tokenizer, or None where it has none.

  A tokenizer.json is preferred to a SentencePiece model in the same folder:
  transformers reads it, and tokens that were added are in it alone. A text has
  then the ids that transformers 5 gives it, but for text that spells a control
  token. Of what `write` wrote, the SentencePiece model is read again.

  Args:
    folder: local or remote.
    vocab_size: embedding rows of the model, if known.

  Raises:
    UserError: a file is damaged, files contradict each other, there are more
      pieces than rows, or a package is missing.
  """
  files = _files(folder)
  settings = _settings(files, folder)
  models = [name for name in files if name.endswith('.model')]
  if TOKENIZER in files and not _is_export(files, models, settings):
    vocabulary = _tokenizers(folder, files, settings)
  elif models:
    vocabulary = _sentencepiece(folder, models[0], files, settings, vocab_size)
  elif settings.is_byt5:
    vocabulary = _bytes(folder, files, settings, vocab_size)
  else:
    return None
  check_size(vocabulary, vocab_size, folder)
  return vocabulary


def read_tokenizer_json(path: epath.Path) -> vocabulary_kinds.Vocabulary:
  """The vocabulary of a tokenizer.json, by itself or in its folder."""
  files = _contents(path.parent, *_SETTINGS)
  content = sources.read_bytes(path)
  return from_files({TOKENIZER: content, **files}, path.parent)


def from_files(
    files: Mapping[str, bytes], folder: epath.Path
) -> vocabulary_kinds.Vocabulary:
  """The vocabulary of a tokenizer.json and the files that belong to it."""
  return _tokenizers(folder, files, _settings(files, folder))


def check_size(vocabulary: Any, vocab_size: int | None, folder: Any) -> None:
  """Raises UserError where a model has no row for a piece."""
  if vocab_size is not None and vocabulary.vocab_size > vocab_size:
    raise errors.UserError(
        f'The vocabulary {folder} has {vocabulary.vocab_size} pieces, but'
        f' the model has only {vocab_size} rows of embeddings. It belongs to'
        ' another model, or has too many sentinels: see extra_ids in'
        f' {CONFIG}.'
    )


def write(folder: epath.Path, model: bytes | None, extra_ids: int) -> None:
  """Writes a tokenizer for transformers for a vocabulary that came with none.

  Args:
    folder: where to.
    model: of SentencePiece, or None for bytes.
    extra_ids: number of sentinels after the pieces or bytes.

  Raises:
    UserError: the model has no counterpart in Hugging Face.
  """
  config: dict[str, Any] = {'extra_ids': extra_ids}
  if model is None:
    config['tokenizer_class'] = 'ByT5Tokenizer'
  else:
    (folder / _MODELS[0]).write_bytes(model)
    proto = tokenizer_json.parse(model, _MODELS[0])
    if tokenizer_json.is_like_t5(proto):
      config['tokenizer_class'] = 'T5Tokenizer'
    else:
      config['tokenizer_class'] = 'PreTrainedTokenizerFast'
      config['clean_up_tokenization_spaces'] = False
      text = tokenizer_json.from_sentencepiece(proto, extra_ids)
      (folder / TOKENIZER).write_bytes(text.encode())
    names = [piece.piece for piece in proto.pieces[:3]]
    for role, name in zip(('pad_token', 'eos_token', 'unk_token'), names):
      config[role] = name
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n')


class _Settings(NamedTuple):
  """What the JSON files in a folder say about its tokenizer."""

  extra_ids: int | None  # number of sentinels, None where no file gives it
  added: dict[int, str]  # the tokens that are listed
  listed: dict[int, Any] | None  # those of CONFIG, with their flags
  kind: str | None  # the class in transformers
  pad: str
  eos: str
  is_byt5: bool  # ByT5's tokenizer has no pieces


def _settings(files: Mapping[str, bytes], folder: epath.Path) -> _Settings:
  try:
    return _parse_settings(files, folder)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'One of {", ".join(_SETTINGS)}, {TOKENIZER} in {folder} is not as'
        f' transformers writes it ({error!r}); fetch it again.'
    ) from error


def _parse_settings(
    files: Mapping[str, bytes], folder: epath.Path
) -> _Settings:
  config, special, listed = (
      _parse(files.get(name, b'{}'), folder / name) for name in _SETTINGS
  )
  added = {int(i): token for token, i in listed.items()}
  decoder = config.get('added_tokens_decoder')
  for i, token in (decoder or {}).items():
    added[int(i)] = _content(token)
  names = list(added.values())
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    for values in (special, config):
      tokens = values.get(key) or ()
      if isinstance(tokens, dict):  # by role
        tokens = tokens.values()
      names += map(_content, tokens)
  sentinels = {name for name in names if vocabulary_kinds.is_sentinel(name)}
  control = lambda key, usual: _content(
      config.get(key) or special.get(key) or usual
  )
  kind = config.get('tokenizer_class')
  path = folder / 'config.json'
  if kind is None and path.exists():
    kind = _parse(sources.read_bytes(path), path).get('tokenizer_class')
  extra_ids = config.get('extra_ids')
  if extra_ids is not None:
    vocabulary_kinds.check_extra_ids(extra_ids, folder / CONFIG)
  return _Settings(
      # A saved ByT5 has extra_ids = 0 and yet lists its 125 sentinels.
      extra_ids=len(sentinels) or extra_ids,
      added=added,
      listed=None
      if decoder is None
      else {
          int(i): token if isinstance(token, dict) else {'content': str(token)}
          for i, token in decoder.items()
      },
      kind=kind,
      pad=control('pad_token', '<pad>'),
      eos=control('eos_token', '</s>'),
      is_byt5=kind == 'ByT5Tokenizer',
  )


def _files(folder: epath.Path) -> dict[str, bytes]:
  """The tokenizer's files; at most one of them is a SentencePiece model."""
  if not folder.is_dir():
    return {}
  models = sorted(f.name for f in folder.iterdir() if f.suffix == '.model')
  known = [name for name in _MODELS if name in models]
  if not known and len(models) > 1:
    raise errors.UserError(
        f'{folder} has several SentencePiece models, {", ".join(models)}; name'
        f' the right one, or rename it to {_MODELS[0]}.'
    )
  return _contents(folder, *(known or models)[:1], *_SETTINGS, TOKENIZER)


def _contents(folder: epath.Path, *names: str) -> dict[str, bytes]:
  paths = [folder / name for name in names]
  return {p.name: sources.read_bytes(p) for p in paths if p.exists()}


def _sentencepiece(
    folder: epath.Path,
    name: str,
    files: Mapping[str, bytes],
    settings: _Settings,
    vocab_size: int | None,
) -> vocabulary_kinds.Vocabulary:
  model = files[name]
  proto = tokenizer_json.parse(model, str(folder / name))
  is_sentinel = vocabulary_kinds.is_sentinel
  has_own = any(is_sentinel(piece.piece) for piece in proto.pieces)
  extra_ids = 0 if has_own else settings.extra_ids
  if extra_ids is None:
    fits = vocab_size is None or len(proto.pieces) + _SENTINELS <= vocab_size
    extra_ids = _SENTINELS if fits else 0
  vocabulary = vocabulary_kinds.SentencePiece(
      model, str(folder / name), extra_ids, files
  )
  # A token that was added is cut out of the text before all else, even if its
  # text was a piece from the start.
  ordinary = {
      i
      for i, piece in enumerate(proto.pieces)
      if piece.type == tokenizer_json.NORMAL and not is_sentinel(piece.piece)
  }
  added = {
      i: token
      for i, token in settings.added.items()
      if i in ordinary
      or vocabulary.pieces[i : i + 1] != [vocabulary_kinds.one_name(token)]
  }
  if not added:
    return vocabulary
  some = ', '.join(f'{i}: {added[i]!r}' for i in sorted(added)[:5])
  raise errors.UserError(
      f'The tokenizer in {folder} has tokens that {name} does not have'
      f' ({some}). They can be read from a {TOKENIZER}, which'
      ' `transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)`'
      ' writes.'
  )


def _is_export(
    files: Mapping[str, bytes], models: list[str], settings: _Settings
) -> bool:
  """Whether the tokenizer.json was made here of the model beside it."""
  if not models or settings.kind in _T5_CLASSES:
    return False
  try:
    proto = tokenizer_json.parse(files[models[0]], models[0])
    text = tokenizer_json.from_sentencepiece(proto, settings.extra_ids or 0)
  except errors.UserError:
    return False
  return files[TOKENIZER] == text.encode()


def _tokenizers(
    folder: epath.Path, files: Mapping[str, bytes], settings: _Settings
) -> vocabulary_kinds.Vocabulary:
  name = str(folder / TOKENIZER)
  text = files[TOKENIZER].decode('utf-8', errors='replace')
  prepare = str
  if settings.kind in _T5_CLASSES:
    prepare = lambda text: tokenizer_json.as_t5(text, settings.listed)
  vocabulary = vocabulary_kinds.Tokenizers(text, name, files, prepare)
  pieces, controls = vocabulary.raw_pieces, (settings.pad, settings.eos)
  ids = [pieces.index(t) if t in pieces else None for t in controls]
  if ids != [vocabulary_kinds.PAD, vocabulary_kinds.EOS]:
    raise errors.UserError(
        f'{name} has pad_token {settings.pad!r} as {ids[0]} and eos_token'
        f' {settings.eos!r} as {ids[1]}; they must be 0 and 1, as in T5. The'
        ' tokenizer belongs to another model.'
    )
  return vocabulary


def _bytes(
    folder: epath.Path,
    files: Mapping[str, bytes],
    settings: _Settings,
    vocab_size: int | None,
) -> vocabulary_kinds.Vocabulary:
  first = vocabulary_kinds.Bytes().vocab_size
  added = {i: token for i, token in settings.added.items() if i >= first}
  tokens = [added[i] for i in sorted(added)]
  if sorted(added) != list(range(first, first + len(added))):
    raise errors.UserError(
        f'The tokens that the tokenizer in {folder} adds to the bytes are'
        f' numbered {sorted(added)[:5]}...; they must follow each other from'
        f' {first} on.'
    )
  if not added:
    extra_ids = settings.extra_ids
    if extra_ids is None:
      fits = vocab_size is None or first + _BYT5_SENTINELS <= vocab_size
      extra_ids = _BYT5_SENTINELS if fits else 0
    tokens = [f'<extra_id_{i}>' for i in range(extra_ids)]
  return vocabulary_kinds.Bytes(tokens, files)


def _parse(content: bytes, path: epath.Path) -> dict[str, Any]:
  try:
    values = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} is not JSON: {error}.') from error
  if not isinstance(values, dict):
    raise errors.UserError(f'{path} is not a JSON object; fetch it again.')
  return values


def _content(token: Any) -> str:
  """A token's text; files have it alone or as {"content": ...}."""
  return token['content'] if isinstance(token, dict) else str(token)
