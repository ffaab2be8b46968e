"""Task quality of the text that a decoding emits, by the task's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import examples
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation


def measure(
    model: loading.Loaded,
    task: tasks.Task,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
    target: loading.Loaded | None = None,
) -> dict[str, np.ndarray]:
  """The quality of a model's own text, decoded autoregressively.

  Args:
    model: it has a vocabulary.
    task: whose metrics.
    batches: inputs, and the labels that outputs are compared with; empty rows
      do not count.
    decoding: settings.
    seed: of sampling; row i of all batches draws from stream (seed, i).
    target: whose encoder the model reads, if it is a draft that shares one.

  Returns:
    Metric name -> float64[n], one value for each example.
  """
  outputs, labels = [], []
  for batch, keys in examples.with_keys(batches, seed):
    prompt = batch.prompt
    if target is not None:
      prompt = model_lib.with_shared_encoding(prompt, target.model, model.model)
    samples = autoregressive.generate(
        model.model, prompt, keys, decoding.without_draft()
    )
    samples = jax.device_get(samples)
    outputs += emitted(samples.tokens, samples.lengths, batch)
    labels += reference(batch)
  return score(task, model.vocabulary, outputs, labels)


def emitted(
    tokens: np.ndarray, lengths: np.ndarray, batch: types.Batch
) -> list[np.ndarray]:
  """The tokens of each real row of samples."""
  real = np.flatnonzero(examples.real_rows(batch))
  return [np.asarray(tokens[i, : lengths[i]]) for i in real]


def reference(batch: types.Batch) -> list[np.ndarray]:
  """The labels of each real row."""
  real = np.flatnonzero(examples.real_rows(batch))
  labels, is_real = np.asarray(batch.labels), np.asarray(batch.segments) > 0
  return [labels[i][is_real[i]] for i in real]


def score(
    task: tasks.Task,
    vocabulary,
    outputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
  """The task's metrics of outputs against labels, both as tokens; each [n]."""
  texts = [
      [generation.detokenize(vocabulary, tokens) for tokens in side]
      for side in (outputs, labels)
  ]
  return metrics_lib.measure(task.metrics, *texts)


def means(values: dict[str, np.ndarray]) -> dict[str, results.Metric]:
  """The mean over examples of each metric, with its standard error."""
  return {
      name: results.Metric(*statistics.mean(each), len(each), '1')
      for name, each in values.items()
  }
