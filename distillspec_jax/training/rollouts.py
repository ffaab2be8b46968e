"""Rollouts: a step learns from the dataset's, draft's or target's tokens.

Sampling happens inside the step's program, before the gradient is taken. The
source is drawn once for the whole batch (algorithm 1 of DistillSpec); one that
can never be drawn is not compiled.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
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
    prompt: types.Prompt,
    key: jax.Array,
    method: method_lib.Method,
    draft: model_lib.Model,
    target: model_lib.Model | None,
) -> tuple[types.Batch, jax.Array]:
  """The batch with the labels that this step learns from.

  Args:
    batch: one example per row where tokens are sampled (not packed).
    prompt: the batch's, with the target's encoder output where it is known.
    key: of this step.
    method: the fractions.
    draft: the model that is trained, as it is now.
    target: may be None where the target is not sampled from.

  Returns:
    The batch, and the source int32[].
  """
  source = draw_source(randomness.stream(key, 'source'), method)
  decoding = decoding_lib.Decoding(
      sampling=decoding_lib.Sampling(temperature=method.temperature),
      max_new_tokens=batch.labels.shape[1],
  )
  keys = randomness.row_keys(
      randomness.stream(key, 'rollout'), batch.inputs.shape[0]
  )

  def sample(model, prompt):
    samples = autoregressive.generate(
        jax.lax.stop_gradient(model), prompt, keys, decoding
    )
    position = jnp.arange(batch.labels.shape[1])[None]
    # A row that fills up a short batch has no tokens and gets none.
    is_real = jnp.any(batch.segments > 0, axis=1, keepdims=True)
    mask = (position < samples.lengths[:, None]) & is_real
    return batch.replace(
        labels=jnp.where(mask, samples.tokens, 0),
        segments=mask.astype(jnp.int32),
        mask=mask,
    )

  def from_dataset():
    return batch.replace(segments=batch.segments.astype(jnp.int32))

  branches = [from_dataset, from_dataset, from_dataset]
  if method.samples_from_draft:
    branches[DRAFT] = lambda: sample(draft, model_lib.own_prompt(prompt, draft))
  if method.samples_from_target:
    branches[TARGET] = lambda: sample(target, prompt)
  if method.fixed_fraction == 1.0:
    return from_dataset(), source
  if method.fixed_fraction == 0.0 and method.draft_fraction in (0.0, 1.0):
    only = DRAFT if method.draft_fraction == 1.0 else TARGET
    return branches[only](), source
  return jax.lax.switch(source, branches), source
