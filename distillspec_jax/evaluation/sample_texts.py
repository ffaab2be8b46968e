"""Answers with the origin of every piece: accepted, corrected, bonus."""

from __future__ import annotations

import itertools
from typing import Any
from collections.abc import Iterable

import jax
import numpy as np

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import pretrained
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative

_SOURCES = {
    samples_lib.Origin.ACCEPTED: 'accepted',
    samples_lib.Origin.CORRECTED: 'corrected',
    samples_lib.Origin.BONUS: 'bonus',
}


def collect(
    target: pretrained.Model,
    draft: pretrained.Model,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    *,
    seed: int,
    count: int,
    draft_name: str,
) -> list[dict[str, Any]]:
  """The first `count` answers, as RUN/samples.json holds them.

  The texts of an answer's pieces, put together, are the answer's text.
  """
  found: list[dict[str, Any]] = []
  for batch in batches:
    keys = randomness.row_keys(jax.random.key(seed), batch.inputs.shape[0])
    out = jax.device_get(
        speculative.generate(
            target.transformer,
            target.params,
            draft.transformer,
            draft.params,
            batch.inputs,
            batch.input_segments,
            keys,
            decoding,
        )
    )
    for i in np.flatnonzero(np.any(np.asarray(batch.segments) > 0, axis=1)):
      if len(found) == count:
        return found
      source = batch.inputs[i][np.asarray(batch.input_segments[i]) > 0]
      length = out.lengths[i]
      found.append(
          {
              'input': generation.detokenize(target.vocabulary, source),
              'draft': draft_name,
              'decoding': decoding.describe(
                  speculative=True, batch_size=batch.inputs.shape[0]
              ),
              'pieces': _pieces(
                  target.vocabulary,
                  out.tokens[i, :length],
                  out.origins[i, :length],
              ),
              'blocks': int(out.statistics.blocks[i]),
              'emitted': int(out.statistics.emitted[i]),
          }
      )
  return found


def _pieces(vocabulary, tokens, origins) -> list[dict[str, str]]:
  """Runs of tokens of one origin, with the text that each adds."""
  pieces, end, before = [], 0, ''
  for origin, run in itertools.groupby(origins):
    end += len(list(run))
    text = generation.detokenize(vocabulary, tokens[:end])
    if end < len(tokens):
      # A character of several bytes is not there before its last one.
      text = text.rstrip('\N{REPLACEMENT CHARACTER}')
    pieces.append(
        {
            'text': text[len(before) :],
            'source': _SOURCES[samples_lib.Origin(int(origin))],
        }
    )
    before = text
  return pieces
