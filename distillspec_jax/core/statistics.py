"""Means, ratios and medians with standard errors over examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special


class Estimate(NamedTuple):
  """A value and its standard error, None where there are too few examples."""

  value: float
  standard_error: float | None


def mean(values: np.ndarray) -> Estimate:
  """The mean of float[n] and its standard error."""
  values = np.asarray(values, np.float64)
  return ratio(values, np.ones_like(values))


def ratio(totals: np.ndarray, counts: np.ndarray) -> Estimate:
  """sum(totals) / sum(counts), with the error of a ratio of two sums.

  Each example gives a total and a count, and both vary; to first order the
  ratio r varies as sum(totals - r counts) / sum(counts) (Cochran, Sampling
  Techniques, 3rd edition, section 2.11).

  Args:
    totals: float[n].
    counts: float[n], not all 0.

  Raises:
    ValueError: nothing was counted.
  """
  totals = np.asarray(totals, np.float64)
  counts = np.asarray(counts, np.float64)
  whole = counts.sum()
  if whole == 0:
    raise ValueError(
        f'A ratio over {len(counts)} examples has counts that sum to 0; leave'
        ' out what was never counted.'
    )
  value = float(totals.sum() / whole)
  number = len(totals)
  if number < 2:
    return Estimate(value, None)
  residual = totals - value * counts
  variance = number / (number - 1) * np.sum(residual**2) / whole**2
  return Estimate(value, float(np.sqrt(variance)))


def ratio_difference(
    totals: tuple[np.ndarray, np.ndarray], counts: tuple[np.ndarray, np.ndarray]
) -> Estimate:
  """The second ratio of sums less the first, measured on the same examples.

  What makes an example hard for both does not count as an error: the standard
  error is that of the examples' differences, to first order (see `ratio`).

  Args:
    totals: two of float[n].
    counts: two of float[n], neither all 0.

  Raises:
    ValueError: nothing was counted.
  """
  first, second = (ratio(*pair) for pair in zip(totals, counts))
  value = second.value - first.value
  number = len(totals[0])
  if number < 2:
    return Estimate(value, None)
  residuals = [
      (np.asarray(total, np.float64) - found.value * np.asarray(count))
      / np.sum(count)
      for total, count, found in zip(totals, counts, (first, second))
  ]
  residual = residuals[1] - residuals[0]
  variance = number / (number - 1) * np.sum(residual**2)
  return Estimate(value, float(np.sqrt(variance)))


def median(values: np.ndarray) -> Estimate:
  """The median of float[n], with the error that endless bootstrapping gives.

  The median of a resample is the i-th smallest of the n values with a
  probability that is known in closed form, so nothing is drawn (Maritz and
  Jarrett 1978, A note on estimating the variance of the sample median). Of few
  values it is somewhat too large: of 5 by a tenth, of 4 by a quarter.

  Args:
    values: float[n], n at least 1; below 3 there is no error.
  """
  values = np.sort(np.asarray(values, np.float64))
  number = len(values)
  value = float(np.median(values))
  if number < 3:
    return Estimate(value, None)
  half = (number + 1) / 2
  below = special.betainc(half, half, np.arange(number + 1) / number)
  weights = np.diff(below)  # [n]
  centre = np.sum(weights * values)
  variance = np.sum(weights * (values - centre) ** 2)
  return Estimate(value, float(np.sqrt(variance)))
