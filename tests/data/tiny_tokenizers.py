"""Tokenizers like those of published models, small and of fixed numbers."""

import functools
import io
import json

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
import tokenizers

NEEDS_SEQIO = "needs seqio: pip install 'distillspec_jax[seqio]'"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
WORDS = ['▁the', '▁draft', '▁target', '▁a', '▁verif', 'er', 'ing', 'ies', '▁f']
LETTERS = 'etaoinsrhldcumfpgwybvkxjqzATD<>/_.,:;()?!0123456789'


@functools.cache
def unigram(byte_fallback: bool = False, sentinels: int = 0) -> bytes:
  """A model that cuts and normalises text as those of T5 and mT5 do.

  It is trained for its table of normalisation; the pieces are put in by hand,
  so that their numbers do not depend on the trainer.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['The draft is short; the target verifies it.']),
      model_writer=model,
      model_type='unigram',
      vocab_size=40,
      hard_vocab_limit=False,
      normalization_rule_name='nmt_nfkc',
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=1,
      minloglevel=2,
  )
  proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
  del proto.pieces[:]
  add = lambda piece, score, kind: proto.pieces.add(
      piece=piece, score=score, type=kind
  )
  add('<pad>', 0.0, CONTROL)
  add('</s>', 0.0, CONTROL)
  add('<unk>', 0.0, UNKNOWN)
  if byte_fallback:
    proto.trainer_spec.byte_fallback = True
    for byte in range(256):
      add(f'<0x{byte:02X}>', 0.0, BYTE)
  for i, piece in enumerate(['▁', *WORDS, *LETTERS]):
    add(piece, -3.0 - i / 8, NORMAL)
  for i in reversed(range(sentinels)):
    add(f'▁<extra_id_{i}>', 0.0, USER_DEFINED)
  return proto.SerializeToString()


def t5(folder, **config):
  """As google/flan-t5 without tokenizer.json: 64 pieces, 100 sentinels."""
  config = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 100} | config
  return hugging_face_folder(folder, unigram(), **config)


def mt5(folder):
  """As google/mt5: 420 pieces, among them 256 bytes and 100 sentinels."""
  return hugging_face_folder(
      folder,
      unigram(byte_fallback=True, sentinels=100),
      tokenizer_class='T5Tokenizer',
      extra_ids=0,
      additional_special_tokens=None,
  )


def byt5(folder):
  """As google/byt5: 384 tokens and no file of pieces."""
  return hugging_face_folder(
      folder,
      tokenizer_class='ByT5Tokenizer',
      extra_ids=125,
      additional_special_tokens=[f'<extra_id_{i}>' for i in range(125)],
  )


def tokenizer_json(folder, **config):
  """As transformers 5 saves a T5: its pieces are in tokenizer.json alone."""
  proto = sentencepiece_model_pb2.ModelProto.FromString(unigram())
  pieces = [(piece.piece, piece.score) for piece in proto.pieces]
  sentinels = [f'<extra_id_{i}>' for i in reversed(range(100))]
  backend = tokenizers.Tokenizer(
      tokenizers.models.Unigram(
          pieces + [(sentinel, 0.0) for sentinel in sentinels], unk_id=2
      )
  )
  backend.normalizer = tokenizers.normalizers.Precompiled(
      proto.normalizer_spec.precompiled_charsmap
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
      [
          tokenizers.pre_tokenizers.WhitespaceSplit(),
          tokenizers.pre_tokenizers.Metaspace(),
      ]
  )
  backend.decoder = tokenizers.decoders.Metaspace()
  backend.add_special_tokens(['<pad>', '</s>', '<unk>', *sentinels])
  backend.post_processor = tokenizers.processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', 1)]
  )
  config = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 100} | config
  hugging_face_folder(folder, **config)
  backend.save(str(folder / 'tokenizer.json'))
  return folder


def hugging_face_folder(folder, model: bytes | None = None, **config):
  """A folder with a tokenizer's files; no tokenizer_config for no config."""
  folder.mkdir()
  if model is not None:
    (folder / 'spiece.model').write_bytes(model)
  if config:
    # Written as no program of ours writes JSON: it is kept byte for byte.
    text = json.dumps(config, indent=3, sort_keys=True)
    (folder / 'tokenizer_config.json').write_text(text + '\n\n')
  (folder / 'config.json').write_text('{"model_type": "t5"}')
  return folder
