"""Standard errors against the bootstrap and against simulation."""

import itertools

import numpy as np
import pytest

from distillspec_jax.core import statistics

SIGMAS = 4.9  # two-sided false alarm 1e-6


def some_examples(rng, shape):
  """Totals and counts that vary together, as accepted and emitted tokens do."""
  counts = rng.integers(1, 20, shape)
  chance = rng.beta(4, 2, shape)
  return rng.binomial(counts, chance), counts


def relative_error_of(standard_error):
  """Deviation from the bootstrap's error, and the deviation to tolerate."""
  rng = np.random.default_rng(0)
  totals, counts = some_examples(rng, 400)
  resamples = 4000
  rows = rng.integers(0, 400, (resamples, 400))
  values = totals[rows].sum(1) / counts[rows].sum(1)
  # The error of a standard deviation from n draws; 1 % for second order.
  allowed = SIGMAS / np.sqrt(2 * resamples) + 0.01
  return abs(standard_error(totals, counts) / np.std(values) - 1), allowed


def test_error_of_a_ratio_is_the_bootstraps():
  deviation, allowed = relative_error_of(
      lambda totals, counts: statistics.ratio(totals, counts).standard_error
  )
  assert deviation < allowed


def test_taking_tokens_for_examples_is_caught():
  def binomial(totals, counts):
    rate = totals.sum() / counts.sum()
    return np.sqrt(rate * (1 - rate) / counts.sum())

  deviation, allowed = relative_error_of(binomial)
  assert deviation > allowed


def paired_examples(rng, shape):
  """Two measurements of the same examples, whose difficulty they share."""
  chance = rng.beta(4, 2, shape)
  counts = [rng.integers(1, 20, shape) for _ in range(2)]
  return tuple(rng.binomial(n, chance) for n in counts), tuple(counts)


def test_a_difference_of_ratios_is_the_second_minus_the_first():
  difference = statistics.ratio_difference(([1, 1], [3, 4]), ([2, 2], [4, 4]))
  assert difference.value == 7 / 8 - 2 / 4
  one = statistics.ratio_difference(([1], [3]), ([2], [4]))
  assert one == (0.25, None)


def test_error_of_a_difference_is_the_spread_of_differences():
  rng = np.random.default_rng(2)
  runs = 3000
  totals, counts = paired_examples(rng, (runs, 100))
  estimates = [
      statistics.ratio_difference(
          tuple(t[i] for t in totals), tuple(c[i] for c in counts)
      )
      for i in range(runs)
  ]
  spread = np.std([estimate.value for estimate in estimates])
  error = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
  # 1 % for terms of second order.
  assert abs(error / spread - 1) < SIGMAS / np.sqrt(2 * runs) + 0.01
  # Twin: treating the ratios as independent overestimates it.
  unpaired = [
      np.hypot(*(statistics.ratio(t[i], c[i]).standard_error
                 for t, c in zip(totals, counts)))
      for i in range(runs)
  ]  # fmt: skip
  assert np.mean(unpaired) > 1.2 * spread


def test_two_standard_errors_cover_the_true_ratio_as_often_as_they_should():
  rng = np.random.default_rng(1)
  runs = 3000
  totals, counts = some_examples(rng, (runs, 100))
  estimates = [statistics.ratio(*run) for run in zip(totals, counts)]
  misses = [abs(e.value - 4 / 6) > 1.96 * e.standard_error for e in estimates]
  # 1 % because the estimate is not quite normal at n = 100.
  allowed = SIGMAS * np.sqrt(0.05 * 0.95 / runs) + 0.01
  assert abs(np.mean(misses) - 0.05) < allowed


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
  assert statistics.ratio([1, 9], [1, 18]).value == 10 / 19


def test_a_mean_has_the_usual_error():
  values = np.array([1.0, 2.0, 4.0, 9.0])
  estimate = statistics.mean(values)
  assert estimate.value == 4.0
  expected = np.std(values, ddof=1) / 2
  assert estimate.standard_error == pytest.approx(expected)


@pytest.mark.parametrize('number', [3, 5])
def test_error_of_a_median_is_that_over_all_resamples(number):
  values = np.random.default_rng(number).normal(size=number)
  resamples = itertools.product(values, repeat=number)
  medians = [sorted(resample)[number // 2] for resample in resamples]
  estimate = statistics.median(values)
  assert estimate.value == np.median(values)
  assert estimate.standard_error == pytest.approx(np.std(medians))


@pytest.mark.parametrize('number, excess', [(4, 1.25), (5, 1.1), (51, 1.05)])
def test_error_of_a_median_slightly_overestimates_its_spread(number, excess):
  values = np.random.default_rng(2).normal(size=(4000, number))
  estimates = [statistics.median(row) for row in values]
  spread = np.std([e.value for e in estimates])
  claimed = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
  assert claimed / spread == pytest.approx(excess, rel=0.08)


def test_too_few_examples_have_no_standard_error():
  assert statistics.ratio([2], [4]) == (0.5, None)
  assert statistics.mean([2.0]) == (2.0, None)
  assert statistics.median([1.0, 3.0]) == (2.0, None)


def test_counts_of_zero_are_an_error():
  with pytest.raises(ValueError, match='over 2 examples has counts that sum'):
    statistics.ratio([0, 0], [0, 0])
