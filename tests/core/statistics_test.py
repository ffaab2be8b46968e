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


# Seeds and examples: (seeds, spread between seeds, examples, both).
STUDIES = [
    (2, 0.1, 1.0, 0.5),
    (3, 0.0, 1.0, 1.0),
    (3, 0.1, 1.0, 0.5),
    (3, 0.3, 1.0, 1.0),
    (5, 0.1, 1.0, 0.5),
    (5, 0.5, 0.0, 1.0),
]
COVERED = 1500


def coverage(intervals_of):
  """How often 95 % intervals contain the truth, 0, in each kind of study."""
  rng = np.random.default_rng(4)
  shares = []
  for seeds, between, hardness, rest in STUDIES:
    covered = 0
    for _ in range(COVERED):
      values = (
          between * rng.normal(size=(seeds, 1))
          + hardness * rng.normal(size=(1, 60))
          + rest * rng.normal(size=(seeds, 60))
      )
      low, high = intervals_of(values)
      covered += low <= 0 <= high
    shares.append(covered / COVERED)
  return np.array(shares)


def test_intervals_over_seeds_and_examples_cover_the_truth_in_95_percent():
  shares = coverage(lambda v: statistics.over_seeds_and_examples(v).interval())
  # Satterthwaite's degrees of freedom are an approximation: 2.5 %.
  allowed = 0.025 + SIGMAS * np.sqrt(0.05 * 0.95 / COVERED)
  assert np.all(np.abs(shares - 0.95) < allowed), shares
  assert abs(shares.mean() - 0.95) < 0.01


def test_errors_over_seeds_or_over_examples_alone_do_not_cover_it():
  def naive(values):
    return statistics.mean(values.mean(axis=1))

  def interval(estimate, factor):
    value, error = estimate
    return value - factor * error, value + factor * error

  normal = coverage(lambda values: interval(naive(values), 1.96))
  assert normal.min() < 0.6
  # Student's t of the seeds alone forgets the shared examples.
  student = coverage(
      lambda v: statistics.Inference(*naive(v), len(v) - 1).interval()
  )
  assert student.min() < 0.85
  of_examples = coverage(
      lambda v: interval(statistics.mean(v.mean(axis=0)), 1.96)
  )
  assert of_examples.min() < 0.8


def test_an_error_without_the_examples_is_no_smaller():
  values = np.random.default_rng(5).normal(size=(3, 50))
  known = statistics.over_seeds_and_examples(values)
  unknown = statistics.over_seeds([statistics.mean(v) for v in values], 50)
  assert unknown.value == pytest.approx(known.value)
  assert unknown.standard_error > known.standard_error


def test_one_seed_has_the_error_over_examples():
  values = np.array([1.0, 2.0, 4.0, 9.0])
  one = statistics.over_seeds_and_examples(values[None])
  assert one[:2] == pytest.approx(statistics.mean(values))
  assert one.degrees == 3
  low, high = one.interval()
  assert (high - low) / 2 == pytest.approx(3.182 * one.standard_error, rel=1e-3)
  assert one.excludes(20.0) and not one.excludes(0.0)


def test_without_a_second_value_there_is_no_interval():
  one = statistics.over_seeds_and_examples(np.ones((1, 1)))
  assert one == (1.0, None, None)
  assert one.interval() is None and not one.excludes(5.0)
  # Equal seeds and equal examples: nothing varies.
  assert statistics.over_seeds_and_examples(np.ones((2, 3))).interval() == (
      1,
      1,
  )


def test_contributions_to_a_ratio_have_its_mean_and_error():
  totals, counts = some_examples(np.random.default_rng(6), 50)
  each = statistics.contributions(totals, counts)
  assert statistics.mean(each) == pytest.approx(
      statistics.ratio(totals, counts)
  )


def test_terms_that_cancel_leave_an_interval_with_an_end():
  """Two seeds that agree by chance, and examples that differ by noise alone."""
  noise = np.array([[1.0, -1.0, 2.0, -2.0], [-1.0, 1.0, 0.0, 0.0]])
  values = noise - noise.mean(axis=1, keepdims=True)
  inference = statistics.over_seeds_and_examples(values)
  rest = values - values.mean(axis=0)
  smallest = np.sum(rest**2) / 3 / 8
  assert inference.standard_error == pytest.approx(np.sqrt(smallest))
  assert inference.degrees == 1
