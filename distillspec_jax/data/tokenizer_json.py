"""SentencePiece models and tokenizer.json, the file of the package tokenizers.

A tokenizer.json is plain JSON. It is written here without that package, and
read by the package from the text that `readable` returns.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
import json
from typing import Any, NamedTuple

from distillspec_jax.core import errors

BYTE, CONTROL, NORMAL, USER_DEFINED = 6, 3, 1, 4  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
_PAD, _EOS = 0, 1
_MAX_ID = 10**7


def parse(model: bytes, name: str) -> Any:
  """The SentencePiece ModelProto of a .model file's content.

  Raises:
    UserError: it is not one, or padding is not 0 and EOS 1.
  """
  from sentencepiece import sentencepiece_model_pb2

  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  except Exception as error:  # protobuf's, of another module in each version
    raise errors.UserError(
        f'{name} is not a SentencePiece model, or is damaged.'
    ) from error
  if not proto.pieces:
    raise errors.UserError(f'{name} is a SentencePiece model without pieces.')
  controls = [p.piece for p in proto.pieces[:2] if p.type == CONTROL]
  spec = proto.trainer_spec
  if controls != [spec.pad_piece, spec.eos_piece]:
    raise errors.UserError(
        f'{name} begins with {[p.piece for p in proto.pieces[:3]]}; padding'
        ' must be 0 and the end of a sequence 1, as in T5. Train it with'
        ' pad_id=0, eos_id=1, unk_id=2, bos_id=-1.'
    )
  return proto


def is_like_t5(proto: Any) -> bool:
  """Whether Hugging Face's T5Tokenizer reads such a model correctly.

  It expects a unigram model without bytes that collapses runs of blanks.
  """
  normalizer = proto.normalizer_spec
  return (
      proto.trainer_spec.model_type == UNIGRAM
      and not proto.trainer_spec.byte_fallback
      and not any(p.type == USER_DEFINED for p in proto.pieces)
      and [p.piece for p in proto.pieces[:3]] == ['<pad>', '</s>', '<unk>']
      and normalizer.add_dummy_prefix
      and normalizer.remove_extra_whitespaces
      and len(normalizer.precompiled_charsmap) > 0
  )


def from_sentencepiece(proto: Any, extra_ids: int) -> str:
  """The text of a tokenizer.json with the same ids as a SentencePiece model.

  Some things differ. Text that spells '</s>' or '<pad>' is read as these
  tokens. Where two ways to cut a text are equally good, the two programs may
  choose differently. And tokenizers normalises combined characters as one, so
  that NFKC sometimes differs; our own models do not normalise.

  Args:
    proto: a ModelProto, unigram or BPE.
    extra_ids: sentinels after the pieces, <extra_id_0> being the last.

  Raises:
    UserError: a kind of model that has no counterpart.
  """
  spec, normalizer = proto.trainer_spec, proto.normalizer_spec
  if (
      spec.model_type not in (UNIGRAM, BPE)
      or spec.treat_whitespace_as_suffix
      or not normalizer.escape_whitespaces
  ):
    raise errors.UserError(
        'This SentencePiece model has no counterpart in Hugging Face: it must'
        ' be of type unigram or bpe, with blanks escaped and before the words.'
    )
  pieces = [p.piece for p in proto.pieces]
  sentinels = [f'<extra_id_{i}>' for i in reversed(range(extra_ids))]
  return json.dumps(
      {
          'version': '1.0',
          'truncation': None,
          'padding': None,
          'added_tokens': [
              _added_token(i, p.piece, special=p.type != USER_DEFINED)
              for i, p in enumerate(proto.pieces)
              if p.type not in (NORMAL, BYTE)
          ]
          + [
              _added_token(i, sentinel, special=True)
              for i, sentinel in enumerate(sentinels, len(pieces))
          ],
          'normalizer': _normalizer(normalizer),
          'pre_tokenizer': None,
          'post_processor': _eos_after(pieces[_EOS]),
          'decoder': _decoder(spec.byte_fallback, normalizer.add_dummy_prefix),
          'model': _unigram(proto)
          if spec.model_type == UNIGRAM
          else _bpe(proto),
      },
      ensure_ascii=False,
  )


class Readable(NamedTuple):
  """A tokenizer.json that reads no text as a control token.

  Attributes:
    text: for the package tokenizers.
    pieces: by id, under their own names; '' where an id has none.
    unknown: id of the unknown piece, or None.
  """

  text: str
  pieces: list[str]
  unknown: int | None


def as_t5(text: str, listed: Mapping[int, Any] | None) -> str:
  """The text of the tokenizer that T5Tokenizer of transformers 5 makes of it.

  That class takes the pieces, the table of normalisation and the added tokens
  from the file, and nothing else.

  Args:
    text: of a tokenizer.json.
    listed: added tokens of tokenizer_config.json, id -> token with its flags,
      which replace those of the file; None: it lists none.

  Raises:
    ValueError, KeyError, TypeError or others: the text is something else.
  """
  tokenizer = json.loads(text)
  if not isinstance(tokenizer['model']['vocab'], list):
    return text  # not a unigram model: transformers has another class for it
  normalizer = tokenizer.get('normalizer') or {}
  steps = normalizer.get('normalizers', [normalizer])
  tables = (step for step in steps if step.get('type') == 'Precompiled')
  metaspace = {
      'type': 'Metaspace',
      'replacement': '▁',
      'prepend_scheme': 'always',
      'split': True,
  }
  tokenizer['model'] |= {'unk_id': 2, 'byte_fallback': False}
  tokenizer |= {
      'normalizer': next(tables, None),
      'pre_tokenizer': {
          'type': 'Sequence',
          'pretokenizers': [{'type': 'WhitespaceSplit'}, metaspace],
      },
      'decoder': metaspace,
  }
  if listed is not None:
    tokenizer['added_tokens'] = [
        _added_token(i, token['content'], False) | token
        for i, token in sorted(listed.items())
    ]
  return json.dumps(tokenizer)


def readable(text: str) -> Readable:
  """The tokenizer, its control tokens renamed to what no text contains.

  tokenizers reads '</s>' in a text as the end of the sequence, which would cut
  labels short. SentencePiece spells it out, and so does this.

  Args:
    text: of a tokenizer.json.

  Raises:
    ValueError, KeyError, TypeError or others: the text is something else.
  """
  tokenizer = json.loads(text)
  model, added = tokenizer['model'], tokenizer['added_tokens']
  vocab = model['vocab']  # unigram: [piece, score] in order; else piece -> i
  is_list = isinstance(vocab, list)
  names = dict(enumerate(piece for piece, _ in vocab)) if is_list else {}
  if not is_list:
    names = {i: piece for piece, i in vocab.items()}
  all_names = names | {token['id']: token['content'] for token in added}
  if not 0 <= min(all_names) <= max(all_names) < _MAX_ID:
    raise ValueError(
        f'ids from {min(all_names)} to {max(all_names)}, but at most {_MAX_ID}'
    )
  unknown = model.get('unk_id')
  if unknown is None and model.get('unk_token') in all_names.values():
    unknown = next(i for i in all_names if all_names[i] == model['unk_token'])
  controls = {_PAD: '\0pad\0', _EOS: '\0eos\0'}
  if unknown is not None:
    controls[unknown] = ' ⁇ '  # as SentencePiece decodes it
  hidden = {i: new for i, new in controls.items() if i in names}
  for i, new in hidden.items():
    if is_list:
      vocab[i][0] = new
    else:
      vocab[new] = vocab.pop(names[i])
  if unknown in hidden and 'unk_token' in model:
    model['unk_token'] = hidden[unknown]
  tokenizer['added_tokens'] = [t for t in added if t['id'] not in hidden]
  # These would add EOS, cut and pad, which is done elsewhere.
  tokenizer |= {'post_processor': None, 'truncation': None, 'padding': None}
  pieces = [all_names.get(i, '') for i in range(max(all_names) + 1)]
  return Readable(json.dumps(tokenizer), pieces, unknown)


def _added_token(number: int, content: str, special: bool) -> dict[str, Any]:
  return {
      'id': number,
      'content': content,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': special,
  }


def _normalizer(spec: Any) -> dict[str, Any]:
  steps: list[dict[str, Any]] = []
  if spec.precompiled_charsmap:
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    steps.append({'type': 'Precompiled', 'precompiled_charsmap': charsmap})
  if spec.remove_extra_whitespaces:
    steps.append({'type': 'Strip', 'strip_left': True, 'strip_right': True})
    several = {'Regex': ' {2,}'}
    steps.append({'type': 'Replace', 'pattern': several, 'content': ' '})
  if spec.add_dummy_prefix:
    steps.append({'type': 'Prepend', 'prepend': '▁'})
  blank = {'String': ' '}
  steps.append({'type': 'Replace', 'pattern': blank, 'content': '▁'})
  return {'type': 'Sequence', 'normalizers': steps}


def _eos_after(eos: str) -> dict[str, Any]:
  text = lambda name: {'Sequence': {'id': name, 'type_id': 0}}
  end = {'SpecialToken': {'id': eos, 'type_id': 0}}
  return {
      'type': 'TemplateProcessing',
      'single': [text('A'), end],
      'pair': [text('A'), end, text('B'), end],
      'special_tokens': {eos: {'id': eos, 'ids': [_EOS], 'tokens': [eos]}},
  }


def _decoder(byte_fallback: bool, dummy_prefix: bool) -> dict[str, Any]:
  steps: list[dict[str, Any]] = [
      {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}
  ]
  if byte_fallback:
    steps.append({'type': 'ByteFallback'})
  steps.append({'type': 'Fuse'})
  if dummy_prefix:
    steps.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  return {'type': 'Sequence', 'decoders': steps}


def _unigram(proto: Any) -> dict[str, Any]:
  return {
      'type': 'Unigram',
      'unk_id': proto.trainer_spec.unk_id,
      'vocab': [[p.piece, p.score] for p in proto.pieces],
      'byte_fallback': proto.trainer_spec.byte_fallback,
  }


def _bpe(proto: Any) -> dict[str, Any]:
  # A SentencePiece model ranks pieces, tokenizers ranks merges: every pair that
  # merges into a piece gets the rank of that piece.
  scores = {p.piece: p.score for p in proto.pieces if p.type == NORMAL}
  merges = []
  for piece in sorted(scores, key=lambda piece: -scores[piece]):
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in scores and right in scores:
        merges.append(f'{left} {right}')
  return {
      'type': 'BPE',
      'dropout': None,
      'unk_token': proto.trainer_spec.unk_piece,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': True,
      'byte_fallback': proto.trainer_spec.byte_fallback,
      'ignore_merges': False,
      'vocab': {p.piece: i for i, p in enumerate(proto.pieces)},
      'merges': merges,
  }
