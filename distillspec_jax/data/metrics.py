"""Task quality: how good answers are, one number per example.

A metric maps (answers, labels), two sequences of n strings, to float64[n]. Any
function of that form serves, by its name here or as itself:

  tasks.json_lines.metrics = ('exact_match', @my_module.rouge_l)

Results carry its `__name__`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import difflib
import re

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors

Metric = Callable[[Sequence[str], Sequence[str]], np.ndarray]
_NUMBER = re.compile(r'####\s*(-?[\d,.]*\d)')


def exact_match(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where answer and label are equal but for outer blanks."""
  return np.array(
      [float(a.strip() == b.strip()) for a, b in zip(answers, labels)]
  )


def final_number(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where the number after '####' is the label's."""

  def number(text):
    match = _NUMBER.search(text)
    return match and match.group(1).replace(',', '')

  pairs = [(number(a), number(b)) for a, b in zip(answers, labels)]
  return np.array([float(a is not None and a == b) for a, b in pairs])


def edit_similarity(
    answers: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
  """float64[n]: 2 M / T for M characters in common, in order, of T in both.

  Ratcliff and Obershelp's, as `difflib` has it; 1 is equal, 0 has nothing in
  common. Code completion is measured so (CodeXGLUE, arXiv 2102.04664).
  """
  return np.array(
      [
          difflib.SequenceMatcher(None, answer, label, autojunk=False).ratio()
          for answer, label in zip(answers, labels)
      ]
  )


KNOWN = {
    metric.__name__: metric
    for metric in (exact_match, final_number, edit_similarity)
}


def resolve(metrics: Sequence[Metric | str]) -> tuple[Metric, ...]:
  """The metrics, those given by name looked up.

  Raises:
    UserError: an unknown name, something that is no function with a name, or
      two metrics of one name.
  """
  if isinstance(metrics, str) or not isinstance(metrics, Sequence):
    raise errors.UserError(
        f"metrics is {metrics!r}; give a tuple, as in ('exact_match',)."
    )
  functions = []
  for metric in metrics:
    if isinstance(metric, str):
      check.one_of(
          KNOWN, hint='or a function of your own module', metric=metric
      )
      metric = KNOWN[metric]
    if not callable(metric) or not hasattr(metric, '__name__'):
      raise errors.UserError(
          f'{metric!r} is not a metric; it must be one of {", ".join(KNOWN)},'
          ' or a function (answers, labels) -> float64[n] with a __name__.'
      )
    functions.append(metric)
  names = [metric.__name__ for metric in functions]
  if len(set(names)) < len(names):
    raise errors.UserError(
        f'The metrics {", ".join(names)} must have different names: results are'
        ' filed under them.'
    )
  return tuple(functions)


def measure(
    metrics: Sequence[Metric], answers: Sequence[str], labels: Sequence[str]
) -> dict[str, np.ndarray]:
  """Name -> float64[n], one value per answer.

  Raises:
    UserError: a metric returns something else.
  """
  values = {}
  for metric in metrics:
    result = np.asarray(metric(answers, labels), np.float64)
    if result.shape != (len(answers),):
      raise errors.UserError(
          f'The metric {metric.__name__} returns shape {result.shape} for'
          f' {len(answers)} answers; it must return one number per answer.'
      )
    values[metric.__name__] = result
  return values
