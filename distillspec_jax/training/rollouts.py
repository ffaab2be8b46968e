"""Whose tokens a step learns on: the dataset's, the target's or the draft's.

Sampling happens inside the step's program, before the gradient is taken. One
coin is thrown for the whole batch (algorithm 1 of DistillSpec); a source that
can never be drawn is not compiled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import method as method_lib

DATASET, DRAFT, TARGET = 0, 1, 2


def draw_source(key: jax.Array, method: method_lib.Method) -> jax.Array:
  """int32[]: DATASET, DRAFT or TARGET."""
  first, second = jax.random.uniform(key, (2,))
  sampled = jnp.where(second < method.draft_fraction, DRAFT, TARGET)
  return jnp.where(first < method.fixed_fraction, DATASET, sampled)


def with_labels(
    batch: types.Batch,
    key: jax.Array,
    method: method_lib.Method,
    draft: transformer.Transformer,
    draft_params: Any,
    target: transformer.Transformer | None,
    target_params: Any,
    encoded: jax.Array | None = None,
) -> tuple[types.Batch, jax.Array]:
  """The batch with the labels that this step learns on.

  Args:
    batch: one example a row where tokens are sampled (not packed).
    key: of this step.
    method: the fractions.
    draft: the model that is trained.
    draft_params: its parameters now.
    target: may be None where the target is not sampled from.
    target_params: its parameters.
    encoded: float[B, S, E] the target's encoder output, for a draft that shares
      it.

  Returns:
    The batch, and the source int32[].
  """
  source = draw_source(randomness.stream(key, 'source'), method)
  decoding = decoding_lib.Decoding(
      temperature=method.temperature,
      max_new_tokens=batch.labels.shape[1],
      block_length=1,
  )
  keys = randomness.row_keys(
      randomness.stream(key, 'rollout'), batch.inputs.shape[0]
  )

  def sample(model, params):
    samples = autoregressive.generate(
        model,
        jax.lax.stop_gradient(params),
        batch.inputs,
        batch.input_segments,
        keys,
        decoding,
        encoded=encoded,
    )
    place = jnp.arange(batch.labels.shape[1])[None]
    # A row that fills up a short batch has no tokens and gets none.
    real = jnp.any(batch.segments > 0, axis=1, keepdims=True)
    written = (place < samples.lengths[:, None]) & real
    return batch.replace(
        labels=jnp.where(written, samples.tokens, 0),
        segments=written.astype(jnp.int32),
        mask=written,
    )

  def from_dataset():
    return batch.replace(segments=batch.segments.astype(jnp.int32))

  branches = [from_dataset, from_dataset, from_dataset]
  if method.samples_from_draft:
    branches[DRAFT] = lambda: sample(draft, draft_params)
  if method.samples_from_target:
    branches[TARGET] = lambda: sample(target, target_params)
  if method.fixed_fraction == 1.0:
    return from_dataset(), source
  if method.fixed_fraction == 0.0 and method.draft_fraction in (0.0, 1.0):
    only = DRAFT if method.draft_fraction == 1.0 else TARGET
    return branches[only](), source
  return jax.lax.switch(source, branches), source
