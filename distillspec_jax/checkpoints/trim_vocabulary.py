"""A model that proposes from the frequent tokens of a text alone.

For T5 v1.1 small the output layer is more than 40 % of what a decoding step
reads. Of its columns most are for tokens that the task's text hardly has. A
draft may do without them: what it never proposes costs acceptance where the
target would say it, and never correctness. No training is needed, and more of
it helps as before.

Zhao et al. 2025, FR-Spec, https://arxiv.org/abs/2502.14856.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib

_HEAD = 'decoder/logits_dense/kernel'
_EMBEDDING = 'token_embedder/embedding'


class Chosen(NamedTuple):
  """Tokens to keep, and what they are of the text.

  Attributes:
    tokens: ascending.
    covered: tokens of the text that are among them, EOS included.
    count: tokens of the text.
  """

  tokens: tuple[int, ...]
  covered: int
  count: int


def choose(
    texts: Iterable[str], vocabulary: Any, vocab_size: int, size: int
) -> Chosen:
  """The `size` most frequent tokens of texts.

  EOS, padding and the unknown token are among them whatever the texts; of
  equally frequent tokens, and where the texts have too few, the lower numbers.

  Args:
    texts: each ends with EOS.
    vocabulary: text <-> tokens.
    vocab_size: tokens of the model, V.
    size: how many to choose.

  Raises:
    UserError: there is no text, or the size is out of range.
  """
  kept = {0, config_lib.EOS, getattr(vocabulary, 'unk_id', None)} - {None}
  kept = sorted(token for token in kept if 0 <= token < vocab_size)
  if not len(kept) <= size <= vocab_size:
    raise errors.UserError(
        f'output_tokens is {size}; it must lie in [{len(kept)}, {vocab_size}]:'
        ' from the special tokens, which are kept, to all that the model has.'
    )
  counts = np.zeros(vocab_size, np.int64)
  for text in texts:
    tokens = [*vocabulary.encode(text), config_lib.EOS]
    counts += np.bincount(tokens, minlength=vocab_size)
  if not counts.any():
    raise errors.UserError(
        'There is no text to count tokens of; give texts like those that the'
        ' target writes.'
    )
  rank = counts.copy()
  rank[kept] = np.iinfo(np.int64).max
  tokens = np.sort(np.argsort(-rank, stable=True)[:size])
  covered = int(counts[tokens].sum())
  return Chosen(tuple(tokens.tolist()), covered, int(counts.sum()))


def cut(
    checkpoint: tensors_lib.Checkpoint, tokens: tuple[int, ...]
) -> tensors_lib.Checkpoint:
  """The model with an output layer for `tokens` only; nothing is read yet.

  Where the output layer is the embedding, transposed, the model gets one of its
  own from those rows: gathered once here rather than in every step. Training
  then moves the two apart.

  Raises:
    UserError: its output layer is cut already.
  """
  config = config_lib.T5Config.from_dict(checkpoint.config)
  if config.output_tokens is not None:
    raise errors.UserError(
        f'The output layer has columns for {config.num_columns} of'
        f' {config.vocab_size} tokens already; cut the model that it was made'
        ' from.'
    )
  numbers = np.array(tokens)
  tensors = dict(checkpoint.tensors)
  if config.logits_via_embedding:
    tensors[_HEAD] = tensors[_EMBEDDING].take(0, numbers).T
  else:
    tensors[_HEAD] = tensors[_HEAD].take(1, numbers)
  changes = {
      'output_tokens': tuple(tokens),
      'logits_via_embedding': False,
      'scale_logits': config.scale_logits,
  }
  config = config_lib.T5Config.from_dict({**config.to_dict(), **changes})
  return checkpoint._replace(config=config.to_dict(), tensors=tensors)
