"""How good the model in training is now, on held-out examples.

A draft is judged by block efficiency: real, greedy speculative decoding with
the target. A model without a target is judged by its cross-entropy.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.losses import objective
from distillspec_jax.models import transformer
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative


class Score(NamedTuple):
  """A validation's outcome.

  Attributes:
    name: 'block_efficiency' or 'cross_entropy'.
    value: tokens a block, or nats a token.
    unit: of the value.
    goodness: grows with quality; what the best checkpoint is chosen by.
    examples: how many were judged.
  """

  name: str
  value: float
  unit: str
  goodness: float
  examples: int


@functools.partial(jax.jit, static_argnames='model')
def _cross_entropy(model, params, batch):
  hidden = model.hidden(
      params,
      batch.inputs,
      batch.input_segments,
      transformer.shift_right(batch.labels, batch.segments),
      batch.segments,
  )
  means = objective.supervised(
      jax.tree_util.Partial(model.unembed, model.head(params)),
      hidden,
      batch.labels,
      batch.mask,
      columns=model.columns(),
  )
  return means['cross_entropy']


def cross_entropy(
    model: transformer.Transformer, params: Any, batches: list[types.Batch]
) -> Score:
  """Nats a token on the labels of the batches."""
  mean = types.Mean(jnp.float32(0), jnp.float32(0))
  for batch in batches:
    mean = mean.merge(_cross_entropy(model, params, batch))
  value = float(mean.value())
  examples = sum(_examples(batch) for batch in batches)
  return Score('cross_entropy', value, 'nats/token', -value, examples)


def block_efficiency(
    target: transformer.Transformer,
    target_params: Any,
    draft: transformer.Transformer,
    draft_params: Any,
    batches: list[types.Batch],
    block_length: int,
) -> Score:
  """Tokens a call of the target, greedy, over the batches' inputs."""
  emitted = blocks = 0
  for batch in batches:
    decoding = decoding_lib.Decoding(
        max_new_tokens=batch.labels.shape[1],
        block_length=min(block_length, batch.labels.shape[1]),
    )
    keys = randomness.row_keys(jax.random.key(0), batch.inputs.shape[0])
    samples = speculative.generate(
        target,
        target_params,
        draft,
        draft_params,
        batch.inputs,
        batch.input_segments,
        keys,
        decoding,
    )
    # Summed where the rows are: no process has all of them.
    real = jnp.any(batch.segments > 0, axis=1)
    emitted += int(jnp.sum(samples.statistics.emitted, where=real))
    blocks += int(jnp.sum(samples.statistics.blocks, where=real))
  value = emitted / max(blocks, 1)
  examples = sum(_examples(batch) for batch in batches)
  return Score('block_efficiency', value, 'tokens/block', value, examples)


def _examples(batch: types.Batch) -> int:
  return int(jnp.sum(jnp.any(batch.segments > 0, axis=1)))
