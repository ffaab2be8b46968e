"""Outputs with the origin of every piece: accepted, corrected, bonus."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
import itertools
import os
import re
from typing import Any

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import types
from distillspec_jax.evaluation import examples
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative

_SOURCES = {
    samples_lib.Origin.ACCEPTED: 'accepted',
    samples_lib.Origin.CORRECTED: 'corrected',
    samples_lib.Origin.BONUS: 'bonus',
}

# Two characters or more, but no indentation.
_LOOP = re.compile(r'(\S.{1,40}?)\1\1', re.DOTALL)


def collect(
    target: loading.Loaded,
    draft: loading.Loaded,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    *,
    seed: int,
    count: int = 3,
    draft_name: str,
) -> list[dict[str, Any]]:
  """The first `count` outputs, as RUN/samples.json holds them.

  The texts of an output's pieces, joined, are the output's text.

  Args:
    target: the model that decides; it has a vocabulary.
    draft: the model that proposes.
    batches: whose inputs are decoded; empty rows do not count.
    decoding: settings.
    seed: of sampling; row i of all batches draws from stream (seed, i).
    count: of outputs; fewer if the batches hold fewer examples.
    draft_name: for the page.
  """
  outputs: list[dict[str, Any]] = []
  for batch, keys in examples.with_keys(batches, seed):
    out = jax.device_get(
        speculative.generate(
            target.model, draft.model, batch.prompt, keys, decoding
        )
    )
    for i in np.flatnonzero(examples.real_rows(batch)):
      if len(outputs) == count:
        return outputs
      source = batch.inputs[i][np.asarray(batch.input_segments[i]) > 0]
      length = out.lengths[i]
      outputs.append(
          {
              'input': generation.detokenize(target.vocabulary, source),
              'draft': draft_name,
              'decoding': decoding.describe(
                  speculative=True, batch_size=len(out.lengths)
              ),
              'pieces': _pieces(
                  target.vocabulary,
                  out.tokens[i, :length],
                  out.origins[i, :length],
              ),
              'blocks': int(out.statistics.blocks[i]),
              'emitted': int(out.statistics.emitted[i]),
              'top_token_share': _top_share(out.tokens[i, :length]),
          }
      )
  return outputs


def choose(
    candidates: Sequence[Sequence[dict[str, Any]]],
    files: Sequence[Hashable],
    count: int,
) -> list[int]:
  """The places of `count` candidates that are worth reading.

  The first that are no loops, of each file one; if these are too few, others of
  the same files, and loops last.

  Args:
    candidates: each has the outputs for one input.
    files: that the inputs come from.
    count: how many; fewer if there are no more.
  """
  loops = [is_repetitive(outputs) for outputs in candidates]
  order = sorted(range(len(candidates)), key=loops.__getitem__)
  first = {files[i]: i for i in reversed(order)}
  order.sort(key=lambda i: (loops[i], first[files[i]] != i))
  return order[:count]


def is_repetitive(outputs: Iterable[dict[str, Any]]) -> bool:
  """Whether one of the texts is a loop.

  It repeats a stretch of text three times in a row, or more than a third of its
  tokens are the same.
  """
  return any(
      output['top_token_share'] > 1 / 3
      or _LOOP.search(''.join(piece['text'] for piece in output['pieces']))
      for output in outputs
  )


def _top_share(tokens: np.ndarray) -> float:
  """The share of the most frequent token."""
  counts = np.unique(tokens, return_counts=True)[1]
  return float(counts.max() / len(tokens)) if len(tokens) else 1.0


def _pieces(
    vocabulary: Any, tokens: np.ndarray, origins: np.ndarray
) -> list[dict[str, str]]:
  """Runs of tokens of one origin, with the text that each adds."""
  complete = generation.detokenize(vocabulary, tokens)
  pieces, end, before = [], 0, 0
  for origin, run in itertools.groupby(origins):
    end += len(list(run))
    # Part of a character decodes to something else than all of it, so only
    # the prefix of the complete text counts; the rest is the next piece's.
    text = generation.detokenize(vocabulary, tokens[:end])
    after = len(os.path.commonprefix([text, complete]))
    after = len(complete) if end == len(tokens) else max(before, after)
    pieces.append(
        {
            'text': complete[before:after],
            'source': _SOURCES[samples_lib.Origin(int(origin))],
        }
    )
    before = after
  return pieces
