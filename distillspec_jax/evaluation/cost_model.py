"""What speculation gains, predicted from acceptance and cost.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, section 3. alpha is the
acceptance rate of a drafted token, gamma the block length, c the time of a
draft step over that of a target step.
"""

from __future__ import annotations

from distillspec_jax.core import errors


def predicted_block_efficiency(alpha: float, gamma: int) -> float:
  """(1 - alpha^(gamma + 1)) / (1 - alpha): tokens a target call.

  It supposes that tokens are accepted independently of each other.

  Raises:
    UserError: alpha outside [0, 1], or gamma below 1.
  """
  _check(alpha, gamma)
  # The geometric sum itself, which also holds at alpha = 1.
  return sum(alpha**i for i in range(gamma + 1))


def block_efficiency_slope(alpha: float, gamma: int) -> float:
  """Derivative of the predicted block efficiency with respect to alpha.

  It carries an error of alpha over to the prediction.
  """
  _check(alpha, gamma)
  return sum(i * alpha ** (i - 1) for i in range(1, gamma + 1))


def speedup(
    block_efficiency: float, c: float, gamma: int, verify: float = 1.0
) -> float:
  """tau / (c gamma + verify): times faster than autoregressive decoding.

  Args:
    block_efficiency: tau, tokens a target call.
    c: time of a draft step over that of a target step.
    gamma: drafted tokens a call.
    verify: time of reading gamma + 1 tokens at once over that of one token;
      1 where the target is bound by memory.
  """
  return block_efficiency / (c * gamma + verify)


def best_block_length(alpha: float, c: float, longest: int = 16) -> int:
  """The block length in [1, longest] with the largest predicted speed-up."""
  return max(
      range(1, longest + 1),
      key=lambda g: speedup(predicted_block_efficiency(alpha, g), c, g),
  )


def _check(alpha: float, gamma: int) -> None:
  if not 0.0 <= alpha <= 1.0:
    raise errors.UserError(f'alpha is {alpha}; it must lie in [0, 1].')
  if gamma < 1:
    raise errors.UserError(f'gamma is {gamma}; it must be at least 1.')
