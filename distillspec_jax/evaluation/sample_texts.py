"""Outputs with the origin of every piece: accepted, corrected, bonus."""

from __future__ import annotations

from collections.abc import Iterable
import itertools
import os
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
          }
      )
  return outputs


def is_repetitive(outputs: Iterable[dict[str, Any]]) -> bool:
  """Whether the second half of one of the texts repeats a shorter stretch."""
  for output in outputs:
    text = ''.join(piece['text'] for piece in output['pieces'])
    half = len(text) // 2
    for period in range(1, half // 2 + 1):
      if text[half:] == text[half - period : len(text) - period]:
        return True
  return False


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
