"""Task quality: how good answers are.

A metric maps (answers, labels), two sequences of n strings, to float64[n]: what
each example contributes to a value, which is their mean. Any function of that
form serves, by its name here or as itself:

  tasks.json_lines.metrics = ('exact_match', @my_module.rouge_l)

Results carry its `__name__`. Statistics of a corpus, BLEU and chrF, are no
means of examples: they return contributions with the corpus' value as their
mean and the jackknife's standard error as their spread, and so does `of_corpus`
for any function that knows only the whole corpus, as those of seqio's tasks.

  exact_match      1 where answer and label are equal but for outer blanks
  final_number     1 where the final number is the label's: GSM8K
  final_answer     1 where the final answer is the label's: BIG-Bench Hard
  edit_similarity  characters in common: code
  rouge1, rouge2, rougeL
                   F-measures in [0, 1], of rouge-score without a stemmer
  bleu, chrf       of sacrebleu with its defaults, in [0, 100]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import difflib
import re
from typing import Any

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import statistics
from distillspec_jax.data import lazy_imports

Metric = Callable[[Sequence[str], Sequence[str]], np.ndarray]
# name -> value, of all answers together.
CorpusMetric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
_ANSWER = r'answer(?:\s+is|:)[:\s]*'
_NUMBERS = [
    re.compile(rf'{start}[$€£]?(-?[\d,.]*\d)', re.IGNORECASE)
    for start in (r'####\s*', _ANSWER)
]
_FINAL = re.compile(rf'{_ANSWER}(.+)', re.IGNORECASE)
_CHOICE = re.compile(r'\(([a-z])\)')
_GROUPS = 20  # that the corpus is divided into for the error of a statistic


def exact_match(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where answer and label are equal but for outer blanks."""
  return np.array(
      [float(a.strip() == b.strip()) for a, b in zip(answers, labels)]
  )


def final_number(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where the number that the answer ends in is the label's.

  It is the first after '####', or else the first after 'the answer is'.

  Raises:
    UserError: no label has such a number.
  """

  def number(text):
    matches = (pattern.search(text) for pattern in _NUMBERS)
    match = next(filter(None, matches), None)
    if match is None:
      return None
    digits = match.group(1).replace(',', '')
    try:
      return float(digits)
    except ValueError:  # 1.2.3
      return digits

  right = [number(label) for label in labels]
  if all(each is None for each in right):
    raise errors.UserError(
        'final_number cannot judge this task: no label has a number after'
        f" '####' or 'the answer is', such as {check.shown(labels[0])}."
    )
  pairs = zip(map(number, answers), right)
  return np.array([float(a is not None and a == b) for a, b in pairs])


def final_answer(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where the final answer is the label's.

  The final answer is what follows the first 'the answer is' in its line, or all
  of a text without that. Case, punctuation at the end and blanks do not count;
  of a multiple choice, with the label '(B)', the letter decides.
  """

  def normal(text):
    match = _FINAL.search(text)
    text = (match.group(1) if match else text).lower()
    return ' '.join(text.split()).strip('.:;,!"\' ')

  def same(answer, label):
    answer, label = normal(answer), normal(label)
    choice = _CHOICE.fullmatch(label)
    if choice is None:
      return answer == label
    given = _CHOICE.search(answer)
    return (given.group(1) if given else answer) == choice.group(1)

  return np.array([float(same(a, b)) for a, b in zip(answers, labels)])


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


def rouge1(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: ROUGE-1, the F-measure of words in common, in [0, 1]."""
  return _rouge('rouge1', answers, labels)


def rouge2(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: ROUGE-2, the F-measure of pairs of words, in [0, 1]."""
  return _rouge('rouge2', answers, labels)


def rougeL(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: ROUGE-L, of the longest common subsequence, in [0, 1]."""
  return _rouge('rougeL', answers, labels)


def bleu(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n] whose mean is sacrebleu's BLEU of the corpus, in [0, 100]."""
  return _sacrebleu(lazy_imports.import_sacrebleu().BLEU(), answers, labels)


def chrf(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n] whose mean is sacrebleu's chrF2 of the corpus, in [0, 100]."""
  return _sacrebleu(lazy_imports.import_sacrebleu().CHRF(), answers, labels)


def _rouge(name, answers, labels):
  scorer = lazy_imports.import_rouge_scorer().RougeScorer([name])
  pairs = zip(answers, labels)
  return np.array([scorer.score(b, a)[name].fmeasure for a, b in pairs])


def _sacrebleu(metric, answers, labels):
  # What sacrebleu's own significance tests do: statistics of sentences are
  # taken once, and added up for every subset.
  each = np.array(metric._extract_corpus_statistics(answers, [labels]))

  def score(counts):
    return metric._compute_score_from_stats(counts.tolist()).score

  total = each.sum(axis=0)
  if len(each) == 1:
    return np.array([score(total)])
  return statistics.jackknife(
      score(total), np.array([score(total - one) for one in each])
  )


KNOWN = {
    metric.__name__: metric
    for metric in (
        exact_match, final_number, final_answer, edit_similarity, rouge1,
        rouge2, rougeL, bleu, chrf,
    )
}  # fmt: skip


def of_corpus(
    metric: CorpusMetric, answers: Sequence[str], labels: Sequence[str]
) -> dict[str, np.ndarray]:
  """Name -> float64[n] whose mean is the corpus' value.

  Their spread gives its error by a jackknife that leaves out one of at most
  twenty groups of examples at a time.

  Raises:
    UserError: the metric fails, or returns something else than numbers.
  """
  number = len(answers)
  groups = np.arange(number) % _GROUPS

  def values(keep):
    sides = ([text for text, k in zip(x, keep) if k] for x in (answers, labels))
    return _call(metric, _named_numbers, *sides)

  total = values([True] * number)
  if number == 1:
    return {name: np.array([value]) for name, value in total.items()}
  without = [values(groups != group) for group in range(groups.max() + 1)]
  contributions = {}
  for name, value in total.items():
    each = statistics.jackknife(value, np.array([one[name] for one in without]))
    # n examples whose mean has the error of the mean of the groups.
    spread = (each[groups] - value) * np.sqrt(number / len(without))
    contributions[name] = value + spread - spread.mean()
  return contributions


def _numbers(result: Any) -> np.ndarray:
  return np.asarray(result, np.float64)


def _named_numbers(result: Any) -> dict[str, float]:
  return {str(name): float(value) for name, value in dict(result).items()}


def _call(metric, convert, answers, labels):
  """What a metric returns, converted; what it raises becomes one line."""
  try:
    return convert(metric(answers, labels))
  except errors.UserError:
    raise
  except Exception as error:
    name = getattr(metric, '__name__', None) or check.shown(metric)
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise errors.UserError(
        f'The metric {name} cannot judge {len(answers)} answers, such as'
        f' {check.shown(answers[0])}: {reason}'
    ) from error


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


def of_task(task: Any) -> tuple[Metric | CorpusMetric, ...]:
  """Everything that a task is judged by; empty: it is not judged."""
  return (*task.metrics, *getattr(task, 'corpus_metrics', ()))


def measure(
    task: Any, answers: Sequence[str], labels: Sequence[str]
) -> dict[str, np.ndarray]:
  """Name -> float64[n] of the metrics of a task, whose means are the values.

  Args:
    task: has `metrics`, functions, and may have `corpus_metrics`.
    answers: n texts.
    labels: n texts.

  Raises:
    UserError: a metric returns something else, cannot judge these labels, or
      two have one name.
  """
  values = {}
  for metric in task.metrics:
    result = _call(metric, _numbers, answers, labels)
    if result.shape != (len(answers),):
      raise errors.UserError(
          f'The metric {metric.__name__} returns shape {result.shape} for'
          f' {len(answers)} answers; it must return one number per answer.'
      )
    values[metric.__name__] = result
  for metric in getattr(task, 'corpus_metrics', ()):
    more = of_corpus(metric, answers, labels)
    if twice := sorted(values.keys() & more.keys()):
      raise errors.UserError(
          f'Two metrics of the task are named {twice[0]}; results are filed'
          ' under their names. Leave one out of its `metrics`.'
      )
    values |= more
  return values


def check_task(task: Any, labels: Sequence[str]) -> None:
  """Raises UserError where the metrics of a task cannot judge these labels.

  They are measured of the labels themselves, before any work is done.
  """
  measure(task, list(labels), list(labels))
