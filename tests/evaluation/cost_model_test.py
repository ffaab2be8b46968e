"""The predictions against closed forms, a simulation and their own slope."""

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.evaluation import cost_model


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
