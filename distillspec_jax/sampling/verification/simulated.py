"""Simulated acceptance: each drafted token passes with a chosen probability.

The text that is emitted means nothing. It measures the sampler alone, at an
acceptance rate for which no pair of models has to be found: both models and the
loop do all their work, and the cost model's assumption, that tokens are
accepted independently of each other, holds.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from distillspec_jax.core import check
from distillspec_jax.core import randomness
from distillspec_jax.sampling.verification import token
from distillspec_jax.sampling.verification import verifier


@dataclasses.dataclass(frozen=True)
class Simulated(verifier.Verifier):
  """Token verification with the number of accepted tokens drawn anew.

  Attributes:
    rate: probability that a drafted token passes, in [0, 1].
  """

  rate: float
  is_lossless: ClassVar[bool] = False

  def __post_init__(self):
    check.in_interval('[0, 1]', owner='Simulated', rate=self.rate)

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = token.Token().sampled(keys, drafted, q_logits, p_logits, lengths)
    return self._redraw(keys, drafted, lengths, verdict)

  def greedy(self, keys, drafted, p_logits, lengths=None):
    verdict = token.greedy(drafted, p_logits, lengths)
    return self._redraw(keys, drafted, lengths, verdict)

  def _redraw(self, keys, drafted, lengths, verdict):
    u = randomness.uniform(
        randomness.streams(keys, 'simulated'), (drafted.shape[1],)
    )
    # The true verdict must not be optimised away: it takes part as a term that
    # is always zero, which no compiler knows.
    zero = jnp.minimum(verdict.num_accepted, 0)
    num_accepted = verifier.prefix_length(u < self.rate, lengths)
    return verdict._replace(num_accepted=num_accepted + zero)
