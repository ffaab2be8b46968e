"""Means with standard errors over examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A value and its standard error (nan where one example cannot tell)."""

  value: float
  standard_error: float


def mean(values: np.ndarray) -> Estimate:
  """The mean of float[n] and its standard error."""
  values = np.asarray(values, np.float64)
  return ratio(values, np.ones_like(values))


def ratio(totals: np.ndarray, counts: np.ndarray) -> Estimate:
  """sum(totals) / sum(counts), with the error of a ratio of two sums.

  Each example gives a total and a count, and both vary; to first order the
  ratio r varies as sum(totals - r counts) / sum(counts) (Cochran, Sampling
  Techniques, section 6.3).

  Args:
    totals: float[n].
    counts: float[n].
  """
  totals = np.asarray(totals, np.float64)
  counts = np.asarray(counts, np.float64)
  whole = counts.sum()
  if whole == 0:
    return Estimate(float('nan'), float('nan'))
  value = totals.sum() / whole
  number = len(totals)
  if number < 2:
    return Estimate(float(value), float('nan'))
  residual = totals - value * counts
  variance = number / (number - 1) * np.sum(residual**2) / whole**2
  return Estimate(float(value), float(np.sqrt(variance)))
