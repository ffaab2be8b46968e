"""The metric functions of seqio's tasks, as functions of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.data import lazy_imports

CorpusMetric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def corpus_metrics(tasks: Sequence[Any]) -> tuple[CorpusMetric, ...]:
  """Functions (answers, labels) -> {name: value} of tasks of seqio.

  Each runs the metric as seqio's evaluator does: answers and labels go through
  the task's postprocessing first. Metrics of scores are left out. Tasks of a
  mixture are judged together only by what all of them are judged by.

  Args:
    tasks: one, or those of a mixture.
  """
  seqio = lazy_imports.import_seqio()
  first = tasks[0]
  judged = [_parts(task) for task in tasks]
  if any(each != judged[0] for each in judged):
    return ()
  prediction = seqio.metrics.ModelOutputType.PREDICTION
  return tuple(
      _function(seqio, first, metric)
      for metric in first.metric_objs
      if metric.model_output_type == prediction
  )


def _parts(task: Any) -> tuple[Any, ...]:
  return (
      task.postprocessor,
      tuple(task.metric_fns),
      tuple(task._metric_objs_constructor_args),
  )


def _function(seqio: Any, task: Any, metric: Any) -> CorpusMetric:
  features = task.output_features

  def measure(
      answers: Sequence[str], labels: Sequence[str]
  ) -> dict[str, float]:
    rows = [{'targets_pretokenized': label.encode()} for label in labels]
    outputs = np.array([*answers, None], object)[:-1]  # of one dimension
    try:
      instance = metric.from_model_output(rows, outputs, features)
      if isinstance(instance, seqio.metrics.CollectingMetric):
        values, _ = instance.actual_compute(rows, features)
      else:
        values = instance.compute()
    except Exception as error:  # the user's own code, and it may want more
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
      raise errors.UserError(
          f'A metric of task {task.name!r} cannot judge texts alone: {reason}'
      ) from error
    numbers = {n: getattr(x, 'value', x) for n, x in values.items()}
    return {
        name: float(value)
        for name, value in numbers.items()
        if np.ndim(value) == 0 and not isinstance(value, str)
    }

  return measure
