"""The metric functions of seqio's tasks, as functions of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
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
  first = tasks[0]
  if any(_parts(task) != _parts(first) for task in tasks):
    return ()
  seqio = lazy_imports.import_seqio()
  prediction = seqio.metrics.ModelOutputType.PREDICTION
  measures = [
      functools.partial(_of_function, first, function)
      for function in first.predict_metric_fns
  ]
  measures += [
      functools.partial(_of_object, seqio, first, metric)
      for metric in first._metric_objs_constructor_args
      if metric.model_output_type == prediction
  ]
  return tuple(_checked(first.name, measure) for measure in measures)


def _parts(task: Any) -> tuple[Any, ...]:
  return (
      task.postprocessor,
      tuple(task.metric_fns),
      tuple(task._metric_objs_constructor_args),
  )


def _rows(labels: Sequence[str]) -> list[dict[str, bytes]]:
  """What a metric sees of the examples."""
  return [{'targets_pretokenized': label.encode()} for label in labels]


def _of_function(
    task: Any, function: Any, answers: Sequence[str], labels: Sequence[str]
) -> dict[str, Any]:
  post = task.postprocess_fn
  rows = _rows(labels)
  return function(
      targets=[
          post(label, example=row, is_target=True)
          for label, row in zip(labels, rows)
      ],
      predictions=[
          post(answer, example=row, is_target=False)
          for answer, row in zip(answers, rows)
      ],
  )


def _of_object(
    seqio: Any,
    task: Any,
    metric: Any,
    answers: Sequence[str],
    labels: Sequence[str],
) -> dict[str, Any]:
  rows, features = _rows(labels), task.output_features
  outputs = np.array([*answers, None], object)[:-1]  # of one dimension
  instance = metric.from_model_output(rows, outputs, features)
  if isinstance(instance, seqio.metrics.CollectingMetric):
    return instance.actual_compute(rows, features)[0]
  return instance.compute()


def _checked(name: str, measure: Callable[..., dict[str, Any]]) -> CorpusMetric:
  """The numbers of a measure; it is the user's own code, which may want more.

  Args:
    name: of the task.
    measure: (answers, labels) -> {name: value}.
  """

  def numbers(
      answers: Sequence[str], labels: Sequence[str]
  ) -> dict[str, float]:
    try:
      values = measure(answers, labels)
    except Exception as error:
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
      raise errors.UserError(
          f'A metric of task {name!r} cannot judge texts alone: {reason}'
      ) from error
    values = {key: getattr(x, 'value', x) for key, x in values.items()}
    return {
        key: float(value)
        for key, value in values.items()
        if np.ndim(value) == 0 and not isinstance(value, str)
    }

  # Who reports on a metric calls it by its function's name.
  of = measure.args[-1]  # type: ignore[attr-defined]
  numbers.__name__ = getattr(of, '__name__', type(of).__name__)
  return numbers
