"""Speed-ups of speculative decoding, predicted from acceptance and cost.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, section 3. alpha is the
probability that a drafted token is accepted, gamma the block length, c the time
of a draft step over that of a target step. Where acceptance is known position
by position, alpha may differ between them; a batch is done when its slowest
sequence is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors

_STEP = 1e-4  # of alpha, for a derivative


def predicted_block_efficiency(
    alpha: float, gamma: int, lengths: Sequence[int] | np.ndarray | None = None
) -> float:
  """(1 - alpha^(gamma + 1)) / (1 - alpha): tokens per target call.

  Assumes that tokens are accepted independently of each other. That is for text
  without an end; where a text ends, its last block is cut, and what was drafted
  beyond is lost. With the lengths of outputs, it is the mean length over the
  expected calls, which is lower, the more so the shorter the outputs.

  Raises:
    UserError: alpha is outside [0, 1], gamma or a length below 1.
  """
  _check(alpha, gamma)
  if lengths is None:
    # The geometric sum itself, which also holds at alpha = 1.
    return sum(alpha**i for i in range(gamma + 1))
  calls = expected_calls(block_distribution([alpha] * gamma), lengths, batch=1)
  return float(np.mean(lengths)) / calls


def block_efficiency_slope(
    alpha: float, gamma: int, lengths: Sequence[int] | np.ndarray | None = None
) -> float:
  """Derivative of `predicted_block_efficiency` with respect to alpha.

  It propagates the standard error of alpha to the prediction.
  """
  _check(alpha, gamma)
  ends = max(alpha - _STEP, 0.0), min(alpha + _STEP, 1.0)
  low, high = (predicted_block_efficiency(end, gamma, lengths) for end in ends)
  return (high - low) / (ends[1] - ends[0])


def speedup(
    block_efficiency: float, c: float, gamma: int, verify: float = 1.0
) -> float:
  """tau / (c gamma + verify): the speed-up over autoregressive decoding.

  Args:
    block_efficiency: tau, tokens per target call.
    c: time of a draft step over that of a target step.
    gamma: tokens drafted per target call; 1 for a parallel draft, whose only
      step, of cost c, drafts the whole block.
    verify: time of a target call on gamma + 1 tokens over that on one; 1 where
      the target is bound by memory bandwidth.
  """
  return block_efficiency / (c * gamma + verify)


def block_distribution(acceptance: Sequence[float]) -> np.ndarray:
  """float64[gamma + 1]: P(a block emits 1, 2, .. gamma + 1 tokens).

  Its mean is 1 + a_1 + a_1 a_2 + .. + a_1 .. a_gamma.

  Args:
    acceptance: a_i, the probability that the i-th token of a block is accepted
      given that all before it were. Empty: one token per call, as in
      autoregressive decoding.

  Raises:
    UserError: a probability is outside [0, 1].
  """
  for alpha in acceptance:
    _check(alpha, 1)
  reached = np.cumprod([1.0, *acceptance])
  return reached * (1.0 - np.array([*acceptance, 0.0]))


def expected_calls(
    distribution: np.ndarray, lengths: Sequence[int] | np.ndarray, batch: int
) -> float:
  """Expected target calls until the slowest sequence of a batch is done.

  Sequences are independent, with lengths drawn from `lengths`, and so are
  their blocks.

  Args:
    distribution: float64[gamma + 1], see `block_distribution`.
    lengths: int[n], tokens of sample outputs.
    batch: sequences decoded together.

  Raises:
    UserError: no lengths, or one below 1.
  """
  lengths = np.asarray(lengths)
  if not lengths.size or lengths.min() < 1:
    raise errors.UserError(
        f'lengths is {lengths.tolist()}; give the length of at least one'
        ' output, each at least 1.'
    )
  longest = int(lengths.max())
  share = np.bincount(lengths, minlength=longest + 1) / lengths.size
  unfinished = 1.0 - np.cumsum(share)[:longest]  # P(length > n)
  # P(an endless sequence has n tokens after this many calls), n < longest.
  emitted = np.zeros(longest)
  emitted[0] = 1.0
  step = np.concatenate([[0.0], distribution])
  calls = 0.0
  while emitted.any():
    running = float(np.clip(emitted @ unfinished, 0.0, 1.0))
    # The target is called as long as any sequence of the batch is unfinished.
    calls += 1.0 - (1.0 - running) ** batch
    # Adding a block convolves; mass at `longest` and above is surely finished.
    emitted = np.convolve(emitted, step)[:longest]
  return float(calls)


def _check(alpha: float, gamma: int) -> None:
  check.in_interval('[0, 1]', alpha=alpha)
  check.at_least(1, gamma=gamma)
