"""Means, ratios and medians over examples and seeds, with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special


class Estimate(NamedTuple):
  """A value and its standard error, None where there are too few examples."""

  value: float
  standard_error: float | None


class Inference(NamedTuple):
  """An estimate with the degrees of freedom of its standard error.

  Attributes:
    value: the estimate.
    standard_error: None where there are too few values.
    degrees: of freedom, for Student's t; None likewise.
  """

  value: float
  standard_error: float | None
  degrees: float | None

  def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
    """The confidence interval by Student's t, None without an error."""
    if self.standard_error is None or self.degrees is None:
      return None
    tail = special.stdtrit(self.degrees, 0.5 + confidence / 2)
    margin = float(tail) * self.standard_error
    return self.value - margin, self.value + margin

  def excludes(self, value: float, confidence: float = 0.95) -> bool:
    """Whether the interval does not contain a value."""
    interval = self.interval(confidence)
    return interval is not None and not interval[0] <= value <= interval[1]


def mean(values: np.ndarray) -> Estimate:
  """The mean of float[n] and its standard error."""
  values = np.asarray(values, np.float64)
  return ratio(values, np.ones_like(values))


def ratio(totals: np.ndarray, counts: np.ndarray) -> Estimate:
  """sum(totals) / sum(counts), with the standard error of a ratio of sums.

  Each example contributes a total and a count, and both vary. To first order
  the error of the ratio r is that of sum(totals - r counts) / sum(counts)
  (Cochran, Sampling Techniques, 3rd edition, section 2.11).

  Args:
    totals: float[n].
    counts: float[n], not all 0.

  Raises:
    ValueError: the counts sum to 0.
  """
  totals = np.asarray(totals, np.float64)
  counts = np.asarray(counts, np.float64)
  if counts.sum() == 0:
    raise ValueError(
        f'A ratio over {len(counts)} examples has counts that sum to 0; leave'
        ' out what was never counted.'
    )
  value = float(totals.sum() / counts.sum())
  residuals = (totals - value * counts) / counts.sum()
  return Estimate(value, _error_of_sum(residuals))


def contributions(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """float64[n] with the mean and, to first order, the error of `ratio`."""
  value = ratio(totals, counts).value
  counts = np.asarray(counts, np.float64)
  return value + (np.asarray(totals) - value * counts) / counts.mean()


def jackknife(value: float, without: np.ndarray) -> np.ndarray:
  """float64[n] with the mean `value` and the jackknife's error of it.

  They are what each example contributes to a statistic of all of them, such as
  BLEU: contributions of two models to the same statistic can be paired. (Efron
  and Stein 1981, The jackknife estimate of variance.)

  Args:
    value: the statistic of n examples.
    without: float[n], the statistic of all examples but one.
  """
  without = np.asarray(without, np.float64)
  return value + (len(without) - 1) * (without.mean() - without)


def over_seeds_and_examples(values: np.ndarray) -> Inference:
  """The mean of float[S, n] over S seeds of a model and n shared examples.

  Both are samples: the seeds of all possible trainings, the examples of all
  possible inputs, and an example is as hard or as easy for every seed. Variance
  components follow from an analysis of variance of two crossed random effects,
  degrees of freedom from Satterthwaite's approximation. With one seed, the
  error is that over examples and says nothing of other trainings.

  Example: differences between two drafts, paired by seed and example.

  Args:
    values: float[S, n], of a mean or `contributions` to a ratio.
  """
  values = np.asarray(values, np.float64)
  seeds, examples = values.shape
  total = float(values.mean())
  of_seed, of_example = values.mean(axis=1), values.mean(axis=0)
  # Terms of the variance of the mean, with their degrees of freedom.
  terms: list[tuple[float, float]] = []
  smallest = 0.0
  if seeds > 1:
    terms.append((of_seed.var(ddof=1) / seeds, seeds - 1))
  if examples > 1:
    more = [(of_example.var(ddof=1) / examples, examples - 1)]
    if seeds > 1:  # less what the seeds' term has already
      residuals = values - of_seed[:, None] - of_example + total
      degrees = (seeds - 1) * (examples - 1)
      square = np.sum(residuals**2) / degrees
      # The variance is at least that of residuals that depend on nothing.
      smallest = square / (seeds * examples)
      more.append((-smallest, degrees))
    if sum(term for term, _ in more) >= 0:
      terms += more
  return _inference(total, terms, smallest)


def over_seeds(estimates: Sequence[Estimate], examples: int) -> Inference:
  """The mean of estimates of several seeds, of which no examples are known.

  Their errors over examples are taken to be entirely shared, which never
  underestimates the error of the mean.

  Args:
    estimates: one per seed.
    examples: in each of them.
  """
  values = np.array([one.value for one in estimates], np.float64)
  errors = [one.standard_error for one in estimates]
  terms: list[tuple[float, float]] = []
  if len(values) > 1:
    terms.append((values.var(ddof=1) / len(values), len(values) - 1))
  if None not in errors and examples > 1:
    terms.append((float(np.mean(np.square(errors))), examples - 1))
  return _inference(float(values.mean()), terms)


def _inference(
    value: float,
    terms: Sequence[tuple[float, float]],
    smallest: float = 0.0,
) -> Inference:
  """From terms of the variance, each with its degrees of freedom.

  Terms that nearly cancel would leave a variance next to 0 with next to no
  degrees of freedom: an interval without end. The variance is at least the
  smallest that it can be, the degrees those of the most uncertain term.
  """
  variance = sum(term for term, _ in terms)
  if not terms or not np.isfinite(variance):
    return Inference(value, None, None)
  spread = sum(term**2 / degrees for term, degrees in terms)
  least = min(degrees for _, degrees in terms)
  degrees = max(variance**2 / spread, least) if spread else terms[0][1]
  if variance < smallest:
    variance, degrees = smallest, least
  return Inference(value, float(np.sqrt(variance)), float(degrees))


def ratio_difference(
    totals: tuple[np.ndarray, np.ndarray], counts: tuple[np.ndarray, np.ndarray]
) -> Estimate:
  """The second ratio minus the first, paired: both on the same examples.

  Differences between examples that affect both ratios alike cancel: the
  standard error is that of the per-example differences, to first order (see
  `ratio`).

  Args:
    totals: two of float[n].
    counts: two of float[n], neither all 0.

  Raises:
    ValueError: the counts sum to 0.
  """
  first, second = (contributions(*pair) for pair in zip(totals, counts))
  return mean(second - first)


def median(values: np.ndarray) -> Estimate:
  """The median of float[n], with the error of the exact bootstrap.

  The median of a bootstrap resample is the i-th smallest of the n values with
  a probability known in closed form, so nothing has to be resampled (Maritz and
  Jarrett 1978, A note on estimating the variance of the sample median). The
  error is overestimated for few values: by a tenth for 5, a quarter for 4.

  Args:
    values: float[n], n at least 1; below 3 there is no error.
  """
  values = np.sort(np.asarray(values, np.float64))
  number = len(values)
  value = float(np.median(values))
  if number < 3:
    return Estimate(value, None)
  # P(the median of a resample is at most the i-th smallest value).
  half = (number + 1) / 2
  cumulative = special.betainc(half, half, np.arange(number + 1) / number)
  weights = np.diff(cumulative)  # [n]
  centre = np.sum(weights * values)
  variance = np.sum(weights * (values - centre) ** 2)
  return Estimate(value, float(np.sqrt(variance)))


def _error_of_sum(residuals: np.ndarray) -> float | None:
  """Standard error of the sum of float[n] that have mean 0; None for n = 1."""
  number = len(residuals)
  if number < 2:
    return None
  return float(np.sqrt(number / (number - 1) * np.sum(residuals**2)))
