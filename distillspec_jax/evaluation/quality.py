"""Task quality: a model's own answers, judged by the task's metrics."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import examples
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation


def measure(
    model: loading.Model,
    task: tasks.Task,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
    target: loading.Model | None = None,
) -> dict[str, results.Metric]:
  """The task's metrics over the batches' examples; empty rows do not count.

  Args:
    model: who answers, autoregressively; it has a vocabulary.
    task: whose metrics.
    batches: inputs, and the labels that answers are compared with.
    decoding: settings.
    seed: of sampling; row i of all batches draws from stream (seed, i).
    target: whose encoder the model reads, if it is a draft that shares one.

  Returns:
    Metric name -> mean over examples with its standard error.
  """
  answers, labels = [], []
  for batch, keys in examples.with_keys(batches, seed):
    encoded = None
    if target is not None:
      encoded = transformer.shared_encoding(
          model.transformer,
          target.transformer,
          target.params,
          batch.inputs,
          batch.input_segments,
      )
    samples = jax.device_get(
        autoregressive.generate(
            model.transformer,
            model.params,
            batch.inputs,
            batch.input_segments,
            keys,
            decoding,
            encoded=encoded,
        )
    )
    for i in np.flatnonzero(examples.real_rows(batch)):
      answer = samples.tokens[i, : samples.lengths[i]]
      label = batch.labels[i][batch.segments[i] > 0]
      answers.append(generation.detokenize(model.vocabulary, answer))
      labels.append(generation.detokenize(model.vocabulary, label))
  found = {}
  values_by_name = metrics_lib.measure(task.metrics, answers, labels)
  for name, values in values_by_name.items():
    estimate = statistics.mean(values)
    found[name] = results.Metric(*estimate, len(values), '1')
  return found
