"""Simulated acceptance: each drafted token passes with a chosen chance.

What comes out means nothing. It measures the sampler alone, at an acceptance
rate that no pair of models has to be found for: both models and the loop do
all their work, and the cost model's supposition, that tokens are accepted
independently of each other, is true.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification


class Simulated(NamedTuple):
  """The chance that a drafted token passes, in [0, 1]."""

  rate: float


def token(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array,
    p_logits: jax.Array,
    simulated: Simulated,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """The token verifier's verdict with the number accepted drawn anew.

  Args:
    keys: key[B], one a row, consumed.
    drafted: int32[B, G].
    q_logits: float32[B, G, V].
    p_logits: float32[B, G+1, V].
    simulated: the chance.
    lengths: int32[B] how many are drafted; default: all G.
  """
  verdict = verification.token(keys, drafted, q_logits, p_logits, lengths)
  return _drawn(keys, drafted, simulated, lengths, verdict)


def greedy(
    keys: jax.Array,
    drafted: jax.Array,
    p_logits: jax.Array,
    simulated: Simulated,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """The greedy verifier's verdict with the number accepted drawn anew."""
  verdict = verification.greedy(drafted, p_logits, lengths)
  return _drawn(keys, drafted, simulated, lengths, verdict)


def _drawn(keys, drafted, simulated, lengths, verdict):
  u = randomness.uniform(
      randomness.streams(keys, 'simulated'), (drafted.shape[1],)
  )
  # The true verdict must not be optimised away: it has a part in this one that
  # is always zero, which no compiler knows.
  nothing = jnp.minimum(verdict.num_accepted, 0)
  num_accepted = verification.prefix_length(u < simulated.rate, lengths)
  return verdict._replace(num_accepted=num_accepted + nothing)
