"""Perplexity: how well a model predicts labels, of tasks without inputs.

exp(sum of -log p(label) / tokens), over the tokens of all labels
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.evaluation import examples
from distillspec_jax.losses import objective
from distillspec_jax.models import model as model_lib


def measure(
    model: loading.Loaded,
    batches: Iterable[types.Batch],
    target: loading.Loaded | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """-log p of each label, and its tokens; float64[n] nats, and float64[n].

  A label with tokens that a trimmed vocabulary lacks has infinitely many nats.

  Args:
    model: that predicts.
    batches: whose labels, cut at the task's length; empty rows do not count.
    target: whose encoder the model reads, if it is a draft that shares one.
  """
  parts = []
  for batch in batches:
    prompt = batch.prompt
    if target is not None:
      prompt = model_lib.with_shared_encoding(prompt, target.model, model.model)
    sums = jax.device_get(_label_nats(model.model, batch, prompt))
    parts.append(np.stack(sums)[:, examples.real_rows(batch)])
  nats, tokens = np.concatenate(parts, axis=1).astype(np.float64)
  return nats, tokens


def contributions(nats: np.ndarray, tokens: np.ndarray) -> np.ndarray:
  """float64[n] with the perplexity as mean and, to first order, its error."""
  each = statistics.contributions(nats, tokens)
  value = np.exp(each.mean())
  return value * (1 + each - each.mean())


@jax.jit
def _label_nats(
    model: model_lib.Model, batch: types.Batch, prompt: types.Prompt
) -> tuple[jax.Array, jax.Array]:
  """Nats float32[B] and tokens float32[B] of the rows' labels."""
  tokens = model_lib.shift_right(batch.labels, batch.segments)
  hidden = model.hidden(
      model_lib.own_prompt(prompt, model), tokens, batch.segments
  )
  means = objective.supervised(
      jax.tree_util.Partial(model_lib.Model.unembed, model.head()),
      hidden,
      batch.labels,
      batch.mask,
      vocabulary=model.trimmed_vocabulary(),
      axis=(),
  )
  means = objective.sum_over(means, 1)
  total, count = means['cross_entropy']
  if 'uncovered' in means:
    uncovered, count = means['uncovered']
    total = jax.numpy.where(uncovered > 0, jax.numpy.inf, total)
  return total, count
