"""Predictions against closed forms, a simulation and their derivative."""

import itertools

import numpy as np
import pytest

from distillspec_jax.core import cost_model
from distillspec_jax.core import errors


@pytest.mark.parametrize('gamma', [1, 5, 8])
@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.9])
def test_block_efficiency_is_the_closed_form(alpha, gamma):
  expected = (1 - alpha ** (gamma + 1)) / (1 - alpha)
  predicted = cost_model.predicted_block_efficiency(alpha, gamma)
  assert predicted == pytest.approx(expected)


def test_block_efficiency_of_a_draft_that_is_always_accepted():
  assert cost_model.predicted_block_efficiency(1.0, 5) == 6.0


def test_block_efficiency_matches_a_simulation_of_independent_acceptance():
  blocks, alpha, gamma = 100_000, 0.7, 4
  passes = np.random.default_rng(0).random((blocks, gamma)) < alpha
  emitted = np.cumprod(passes, axis=1).sum(axis=1) + 1
  predicted = cost_model.predicted_block_efficiency(alpha, gamma)
  allowed = 4.9 * np.std(emitted) / np.sqrt(blocks)  # false alarm 1e-6
  assert abs(np.mean(emitted) - predicted) < allowed


def test_the_end_of_a_text_cuts_its_last_block():
  rng, alpha, gamma = np.random.default_rng(1), 0.8, 5
  lengths = rng.integers(1, 30, 4000)
  calls = np.zeros(len(lengths))
  emitted = np.zeros(len(lengths))
  while (going := emitted < lengths).any():
    passes = rng.random((len(lengths), gamma)) < alpha
    emitted += np.cumprod(passes, axis=1).sum(axis=1) + 1
    calls += going
  counted = lengths.sum() / calls.sum()
  error = np.std(lengths - counted * calls) / calls.sum() * len(lengths) ** 0.5
  predicted = cost_model.predicted_block_efficiency(alpha, gamma, lengths)
  assert abs(predicted - counted) < 4.9 * error  # false alarm 1e-6
  # Twin: text without an end.
  uncut = cost_model.predicted_block_efficiency(alpha, gamma)
  assert abs(uncut - counted) > 4.9 * error
  assert cost_model.predicted_block_efficiency(1.0, gamma, [10]) == 5.0


@pytest.mark.parametrize('alpha', [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slope_is_the_derivative(alpha):
  expected = sum(i * alpha ** (i - 1) for i in range(1, 6))
  slope = cost_model.block_efficiency_slope(alpha, 5)
  assert slope == pytest.approx(expected, rel=1e-3)


def test_slope_for_short_texts_is_smaller():
  slopes = [
      cost_model.block_efficiency_slope(0.8, 5, lengths)
      for lengths in ([4, 6], [400], None)
  ]
  assert 0 < slopes[0] < slopes[1] < slopes[2]
  assert cost_model.block_efficiency_slope(0.8, 5, [1]) == pytest.approx(0)


def test_speedup():
  assert cost_model.speedup(3.0, c=0.1, gamma=5) == pytest.approx(2.0)
  predicted = cost_model.speedup(3.0, c=0.1, gamma=5, verify=1.5)
  assert predicted == pytest.approx(1.5)


def test_distribution_of_tokens_per_block():
  distribution = cost_model.block_distribution((0.5, 0.2, 1.0))
  assert distribution == pytest.approx([0.5, 0.5 * 0.8, 0.0, 0.5 * 0.2])
  assert distribution @ [1, 2, 3, 4] == pytest.approx(1 + 0.5 + 0.1 + 0.1)
  assert cost_model.block_distribution(()) == pytest.approx([1.0])


def test_equal_positions_give_the_predicted_block_efficiency():
  distribution = cost_model.block_distribution([0.7] * 5)
  mean = distribution @ np.arange(1, 7)
  assert mean == pytest.approx(cost_model.predicted_block_efficiency(0.7, 5))


def calls_by_enumeration(distribution, lengths, batch):
  """The mean over all lengths, and all sequences of blocks of each."""

  def of_one(left):  # calls -> probability
    if left <= 0:
      return {0: 1.0}
    outcomes = {}
    for emitted, probability in enumerate(distribution, start=1):
      for calls, rest in of_one(left - emitted).items():
        outcomes[calls + 1] = outcomes.get(calls + 1, 0.0) + probability * rest
    return outcomes

  mean = 0.0
  for chosen in itertools.product(lengths, repeat=batch):
    each = [of_one(length).items() for length in chosen]
    for outcome in itertools.product(*each):
      probability = np.prod([p for _, p in outcome]) / len(lengths) ** batch
      mean += probability * max(calls for calls, _ in outcome)
  return mean


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('positions', [(), (0.6,), (0.9, 0.3)])
def test_calls_until_the_slowest_sequence_is_done(positions, batch):
  lengths = (1, 4, 4, 6)
  distribution = cost_model.block_distribution(positions)
  calls = cost_model.expected_calls(distribution, lengths, batch)
  assert calls == pytest.approx(
      calls_by_enumeration(distribution, lengths, batch)
  )


def test_waiting_for_the_slowest_sequence_costs_calls():
  distribution = cost_model.block_distribution((0.5, 0.5))
  one, eight = (
      cost_model.expected_calls(distribution, [64], n) for n in (1, 8)
  )
  # The last block may be truncated, which takes more calls than this.
  assert one > 64 / (distribution @ [1, 2, 3])
  assert eight > 1.05 * one


def test_autoregressive_decoding_waits_for_the_longest_output():
  distribution = cost_model.block_distribution(())
  assert cost_model.expected_calls(distribution, [5, 9], 1) == pytest.approx(7)
  assert cost_model.expected_calls(distribution, [5, 9], 2) == pytest.approx(8)


@pytest.mark.parametrize('lengths', [[], [3, 0]])
def test_outputs_without_tokens_are_an_error(lengths):
  with pytest.raises(errors.UserError, match='give the length of at least one'):
    cost_model.expected_calls(cost_model.block_distribution(()), lengths, 1)


def test_a_probability_above_one_is_an_error():
  with pytest.raises(errors.UserError, match='alpha is 1.5'):
    cost_model.block_distribution((0.5, 1.5))


@pytest.mark.parametrize(
    'alpha, gamma, message',
    [
        (1.1, 3, r'alpha is 1.1; it must lie in \[0, 1\]'),
        (float('nan'), 3, 'alpha is nan'),
        (0.5, 0, 'gamma is 0; it must be at least 1'),
    ],
)
def test_arguments_out_of_range_are_errors(alpha, gamma, message):
  with pytest.raises(errors.UserError, match=message):
    cost_model.predicted_block_efficiency(alpha, gamma)
  with pytest.raises(errors.UserError, match=message):
    cost_model.block_efficiency_slope(alpha, gamma)
