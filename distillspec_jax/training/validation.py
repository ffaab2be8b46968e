"""How good the model in training is, on held-out examples.

A draft is judged by block efficiency: it decodes speculatively with the target.
A model without a target is judged by its cross-entropy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.losses import objective
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative


class Score(NamedTuple):
  """A validation's outcome.

  Attributes:
    name: 'block_efficiency' or 'cross_entropy'.
    value: tokens per target call, or nats per token.
    unit: of the value.
    score: grows with quality; the checkpoint with the largest one is kept.
    examples: how many were judged.
  """

  name: str
  value: float
  unit: str
  score: float
  examples: int


@jax.jit
def _cross_entropy(model, batch):
  hidden = model.hidden(
      batch.prompt,
      model_lib.shift_right(batch.labels, batch.segments),
      batch.segments,
  )
  means = objective.supervised(
      jax.tree_util.Partial(model_lib.Model.unembed, model.head()),
      hidden,
      batch.labels,
      batch.mask,
      vocabulary=model.trimmed_vocabulary(),
  )
  return means['cross_entropy']


def cross_entropy(model: model_lib.Model, batches: list[types.Batch]) -> Score:
  """Nats per token on the labels of the batches."""
  mean = types.Mean(jnp.float32(0), jnp.float32(0))
  for batch in batches:
    mean = mean.merge(_cross_entropy(model, batch))
  value = float(mean.value())
  examples = sum(_examples(batch) for batch in batches)
  return Score('cross_entropy', value, 'nats/token', -value, examples)


def block_efficiency(
    target: model_lib.Model,
    draft: model_lib.Model,
    batches: list[types.Batch],
    decoding: decoding_lib.Decoding,
) -> Score:
  """Tokens per target call over the batches' inputs."""
  emitted = blocks = 0
  for batch in batches:
    keys = randomness.row_keys(jax.random.key(0), batch.inputs.shape[0])
    samples = speculative.generate(target, draft, batch.prompt, keys, decoding)
    # Summed where the rows are: no process has all of them.
    is_real = jnp.any(batch.segments > 0, axis=1)
    emitted += int(jnp.sum(samples.statistics.emitted, where=is_real))
    blocks += int(jnp.sum(samples.statistics.blocks, where=is_real))
  value = emitted / max(blocks, 1)
  examples = sum(_examples(batch) for batch in batches)
  return Score('block_efficiency', value, 'tokens/block', value, examples)


def _examples(batch: types.Batch) -> int:
  return int(jnp.sum(jnp.any(batch.segments > 0, axis=1)))
