"""Task quality of the text that a decoding emits, by the task's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import sys

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.distributed import hosts
from distillspec_jax.evaluation import examples
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation


def decode(
    model: loading.Loaded,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
    target: loading.Loaded | None = None,
) -> list[np.ndarray]:
  """The tokens that a model emits by itself for each real row.

  Args:
    model: that decodes.
    batches: inputs; empty rows do not count.
    decoding: settings; those of drafting have no effect.
    seed: of sampling; row i of all batches draws from stream (seed, i).
    target: whose encoder the model reads, if it is a draft that shares one.
  """
  outputs = []
  for batch, keys in examples.with_keys(batches, seed):
    prompt = batch.prompt
    if target is not None:
      prompt = model_lib.with_shared_encoding(prompt, target.model, model.model)
    samples = autoregressive.generate(
        model.model, prompt, keys, decoding.without_draft()
    )
    samples = jax.device_get(samples)
    outputs += emitted(samples.tokens, samples.lengths, batch)
  return outputs


def emitted(
    tokens: np.ndarray, lengths: np.ndarray, batch: types.Batch
) -> list[np.ndarray]:
  """The tokens of each real row of samples."""
  real = np.flatnonzero(examples.real_rows(batch))
  return [np.asarray(tokens[i, : lengths[i]]) for i in real]


def references(
    task: tasks.Task, split: str, batches: Sequence[types.Batch]
) -> list[str]:
  """The label of each real row, as the task has it.

  A label's tokens are no reference: they are cut at the task's `label_length`,
  and a vocabulary may lack characters. They are decoded where a task has no
  `stream` of texts, or others than its examples, which a line says.
  """
  labels = []
  for batch in batches:
    real = np.flatnonzero(examples.real_rows(batch))
    is_label = np.asarray(batch.segments) > 0
    labels += [np.asarray(batch.labels[i])[is_label[i]] for i in real]
  texts = _texts(task, split, labels)
  if texts is None:
    if hosts.is_first():
      print(
          f'distillspec: task {task.name!r} has no texts of its examples, so'
          ' answers are compared with decoded tokens of labels, at most'
          f' {task.label_length} each.',
          file=sys.stderr,
      )
    texts = [generation.detokenize(task.vocabulary, each) for each in labels]
  return texts


def _texts(task, split, labels) -> list[str] | None:
  """The texts that the labels are the tokens of, if the task has them."""
  texts = []
  stream = getattr(task, 'stream', lambda split: ())(split)
  for _, text in filter(None, stream):
    tokens = task.vocabulary.encode(text)
    if not tokens:  # such examples are left out
      continue
    label = labels[len(texts)]
    if [*tokens, vocabulary_kinds.EOS][: len(label)] != label.tolist():
      return None
    texts.append(text)
    if len(texts) == len(labels):
      return texts
  return None


def score(
    task: tasks.Task, outputs: Sequence[np.ndarray], references: Sequence[str]
) -> dict[str, np.ndarray]:
  """The task's metrics of outputs, which are tokens; float64[n] each.

  The mean is the metric: `data.metrics`.
  """
  answers = [generation.detokenize(task.vocabulary, each) for each in outputs]
  return metrics_lib.measure(task, answers, references)


def means(values: dict[str, np.ndarray]) -> dict[str, results.Metric]:
  """The mean over examples of each metric, with its standard error."""
  return {
      name: results.Metric(*statistics.mean(each), len(each), '1')
      for name, each in values.items()
  }
