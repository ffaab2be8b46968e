"""A draft that proposes only the frequent tokens of a text.

For T5 v1.1 small the output layer is more than 40 % of what a decoding step
reads, and a task's text needs few of its tokens. A draft can do without the
others: what it never proposes costs acceptance where the target would emit it,
and never correctness. It needs no training, though training helps as always.

Zhao et al. 2025, FR-Spec, https://arxiv.org/abs/2502.14856.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.checkpoints import parameters
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib

_HEAD = 'decoder/logits_dense/kernel'
_EMBEDDING = 'token_embedder/embedding'


class ChosenTokens(NamedTuple):
  """Tokens to keep, and how much of the text they are.

  Attributes:
    tokens: ascending.
    num_covered: tokens of the text that are among them, EOS included.
    num_total: tokens of the text.
  """

  tokens: tuple[int, ...]
  num_covered: int
  num_total: int


def choose_tokens(
    texts: Iterable[str], vocabulary: Any, vocab_size: int, size: int
) -> ChosenTokens:
  """The `size` most frequent tokens of texts.

  EOS, padding and the unknown token are always among them. Of equally frequent
  tokens, and where the texts have too few, the lower numbers are chosen.

  Args:
    texts: each ends with EOS.
    vocabulary: text <-> tokens.
    vocab_size: tokens of the model, V.
    size: how many to choose.

  Raises:
    UserError: there is no text, or the size is out of range.
  """
  special = {0, config_lib.EOS, getattr(vocabulary, 'unk_id', None)} - {None}
  special = sorted(token for token in special if 0 <= token < vocab_size)
  check.in_interval(
      f'[{len(special)}, {vocab_size}]',
      trim_vocabulary=size,
      hint='from the special tokens, which are kept, to all of the model',
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
  rank[special] = np.iinfo(np.int64).max
  tokens = np.sort(np.argsort(-rank, stable=True)[:size])
  num_covered = int(counts[tokens].sum())
  return ChosenTokens(tuple(tokens.tolist()), num_covered, int(counts.sum()))


def trim(
    checkpoint: parameters.Checkpoint, tokens: tuple[int, ...]
) -> parameters.Checkpoint:
  """The model with an output layer for `tokens` only; nothing is read yet.

  Where the output layer is the embedding, transposed, the model gets a separate
  one from those rows, gathered once here and not in every step. If it is then
  trained, the two move apart.

  Raises:
    UserError: its output layer is trimmed already.
  """
  config = checkpoint.config
  if config.trimmed_vocabulary is not None:
    raise errors.UserError(
        f'The output layer has {config.num_logits} of {config.vocab_size}'
        ' tokens already; trim the model that it was made from.'
    )
  numbers = np.array(tokens)
  tensors = dict(checkpoint.tensors)
  if config.logits_via_embedding:
    tensors[_HEAD] = tensors[_EMBEDDING].take(0, numbers).T
  else:
    tensors[_HEAD] = tensors[_HEAD].take(1, numbers)
  # scale_logits stays: its default would follow logits_via_embedding.
  config = dataclasses.replace(
      config, trimmed_vocabulary=tuple(tokens), logits_via_embedding=False
  )
  return checkpoint._replace(config=config, tensors=tensors)
