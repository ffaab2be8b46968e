"""What speculation gains, predicted from acceptance and cost.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, section 3. alpha is the
acceptance rate of a drafted token, gamma the block length, c the time of a
draft step over that of a target step. Where acceptance is known place by place,
alpha need not be the same everywhere; rows that are decoded together wait for
the slowest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def block_law(acceptance: Sequence[float]) -> np.ndarray:
  """float64[gamma + 1]: chance that a block emits 1, 2, .. gamma + 1 tokens.

  Its mean is 1 + a_1 + a_1 a_2 + .. + a_1 .. a_gamma.

  Args:
    acceptance: a_i, the chance that the i-th token of a block is accepted if
      all before it were. Empty: a token a call, as autoregressive decoding.

  Raises:
    UserError: a chance outside [0, 1].
  """
  for alpha in acceptance:
    _check(alpha, 1)
  reached = np.cumprod([1.0, *acceptance])
  return reached * (1.0 - np.array([*acceptance, 0.0]))


def expected_calls(
    law: np.ndarray, lengths: Sequence[int] | np.ndarray, rows: int
) -> float:
  """Calls of the target until the slowest of `rows` rows is done, on average.

  Rows are independent, each with one of the lengths, and blocks are as well.

  Args:
    law: float64[gamma + 1], see `block_law`.
    lengths: int[n], tokens of answers; a row's is any of them.
    rows: decoded together.

  Raises:
    UserError: no lengths, or one below 1.
  """
  lengths = np.asarray(lengths)
  if not lengths.size or lengths.min() < 1:
    raise errors.UserError(
        'lengths of answers must be at least one number, and all at least 1;'
        f' they are {lengths.tolist()}.'
    )
  longest = int(lengths.max())
  share = np.bincount(lengths, minlength=longest + 1) / lengths.size
  # P(length > n): a row that has n tokens goes on.
  unfinished = 1.0 - np.cumsum(share)[:longest]
  # P(a row has n tokens), n < longest; before the first call none has any.
  emitted = np.zeros(longest)
  emitted[0] = 1.0
  step = np.concatenate([[0.0], law])
  calls = 0.0
  while emitted.any():
    going = min(max(float(emitted @ unfinished), 0.0), 1.0)
    # A call is made if any row goes on.
    calls += 1.0 - (1.0 - going) ** rows
    emitted = np.convolve(emitted, step)[:longest]
  return calls


def _check(alpha: float, gamma: int) -> None:
  if not 0.0 <= alpha <= 1.0:
    raise errors.UserError(f'alpha is {alpha}; it must lie in [0, 1].')
  if gamma < 1:
    raise errors.UserError(f'gamma is {gamma}; it must be at least 1.')
