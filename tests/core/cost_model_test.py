"""The predictions against closed forms, a simulation and their own slope."""

import itertools

import numpy as np
import pytest

from distillspec_jax.core import cost_model
from distillspec_jax.core import errors


@pytest.mark.parametrize('gamma', [1, 5, 8])
@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.9])
def test_block_efficiency_is_the_closed_form(alpha, gamma):
  expected = (1 - alpha ** (gamma + 1)) / (1 - alpha)
  found = cost_model.predicted_block_efficiency(alpha, gamma)
  assert found == pytest.approx(expected)


def test_block_efficiency_of_a_draft_that_is_always_right():
  assert cost_model.predicted_block_efficiency(1.0, 5) == 6.0


def test_block_efficiency_is_what_independent_acceptance_gives():
  blocks, alpha, gamma = 100_000, 0.7, 4
  passes = np.random.default_rng(0).random((blocks, gamma)) < alpha
  emitted = np.cumprod(passes, axis=1).sum(axis=1) + 1
  found = cost_model.predicted_block_efficiency(alpha, gamma)
  allowed = 4.9 * np.std(emitted) / np.sqrt(blocks)  # a false alarm of 1e-6
  assert abs(np.mean(emitted) - found) < allowed


@pytest.mark.parametrize('alpha', [0.2, 0.5, 0.9])
def test_slope_is_the_derivative(alpha):
  step = 1e-6
  high, low = (
      cost_model.predicted_block_efficiency(alpha + sign * step, 5)
      for sign in (1, -1)
  )
  slope = cost_model.block_efficiency_slope(alpha, 5)
  assert slope == pytest.approx((high - low) / (2 * step), rel=1e-6)


def test_slope_at_the_ends():
  assert cost_model.block_efficiency_slope(0.0, 3) == 1.0
  assert cost_model.block_efficiency_slope(1.0, 3) == 1 + 2 + 3


def test_speedup():
  assert cost_model.speedup(3.0, c=0.1, gamma=5) == pytest.approx(2.0)
  found = cost_model.speedup(3.0, c=0.1, gamma=5, verify=1.5)
  assert found == pytest.approx(1.5)


def test_the_best_block_grows_with_acceptance_and_shrinks_with_cost():
  assert cost_model.best_block_length(0.5, 0.1) < cost_model.best_block_length(
      0.9, 0.1
  )
  assert cost_model.best_block_length(0.9, 0.3) < cost_model.best_block_length(
      0.9, 0.01
  )
  assert cost_model.best_block_length(1.0, 0.1, longest=7) == 7
  assert cost_model.best_block_length(0.0, 0.1) == 1


def test_law_of_a_block():
  law = cost_model.block_law((0.5, 0.2, 1.0))
  assert law == pytest.approx([0.5, 0.5 * 0.8, 0.0, 0.5 * 0.2])
  assert law @ [1, 2, 3, 4] == pytest.approx(1 + 0.5 + 0.1 + 0.1)
  assert cost_model.block_law(()) == pytest.approx([1.0])


def test_law_of_equal_places_has_the_predicted_block_efficiency():
  law = cost_model.block_law([0.7] * 5)
  found = law @ np.arange(1, 7)
  assert found == pytest.approx(cost_model.predicted_block_efficiency(0.7, 5))


def calls_by_enumeration(law, lengths, rows):
  """The mean over all lengths of rows, and all blocks of each."""

  def of_a_row(left):  # calls -> chance
    if left <= 0:
      return {0: 1.0}
    found = {}
    for emitted, chance in enumerate(law, start=1):
      for calls, rest in of_a_row(left - emitted).items():
        found[calls + 1] = found.get(calls + 1, 0.0) + chance * rest
    return found

  mean = 0.0
  for chosen in itertools.product(lengths, repeat=rows):
    laws = [of_a_row(length).items() for length in chosen]
    for outcome in itertools.product(*laws):
      chance = np.prod([p for _, p in outcome]) / len(lengths) ** rows
      mean += chance * max(calls for calls, _ in outcome)
  return mean


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('places', [(), (0.6,), (0.9, 0.3)])
def test_calls_until_the_slowest_row_is_done(places, rows):
  law, lengths = cost_model.block_law(places), (1, 4, 4, 6)
  found = cost_model.expected_calls(law, lengths, rows)
  assert found == pytest.approx(calls_by_enumeration(law, lengths, rows))


def test_rows_that_wait_cost_calls():
  law = cost_model.block_law((0.5, 0.5))
  one, eight = (cost_model.expected_calls(law, [64], n) for n in (1, 8))
  # The last block may be cut short, so that more calls are needed than this.
  assert one > 64 / (law @ [1, 2, 3])
  assert eight > 1.05 * one


def test_autoregressive_decoding_waits_for_the_longest_answer():
  law = cost_model.block_law(())
  assert cost_model.expected_calls(law, [5, 9], 1) == pytest.approx(7)
  assert cost_model.expected_calls(law, [5, 9], 2) == pytest.approx(8)


@pytest.mark.parametrize('lengths', [[], [3, 0]])
def test_answers_without_tokens_are_an_error(lengths):
  with pytest.raises(errors.UserError, match='must be at least one number'):
    cost_model.expected_calls(cost_model.block_law(()), lengths, 1)


def test_a_chance_above_one_is_an_error():
  with pytest.raises(errors.UserError, match='alpha is 1.5'):
    cost_model.block_law((0.5, 1.5))


@pytest.mark.parametrize(
    'alpha, gamma, message',
    [
        (1.1, 3, r'alpha is 1.1; it must lie in \[0, 1\]'),
        (float('nan'), 3, 'alpha is nan'),
        (0.5, 0, 'gamma is 0; it must be at least 1'),
    ],
)
def test_what_means_nothing_is_an_error(alpha, gamma, message):
  with pytest.raises(errors.UserError, match=message):
    cost_model.predicted_block_efficiency(alpha, gamma)
  with pytest.raises(errors.UserError, match=message):
    cost_model.block_efficiency_slope(alpha, gamma)
