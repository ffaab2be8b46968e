"""Typical acceptance, lossy: what the target finds plausible passes.

A drafted token passes if the target gives it more than
min(epsilon, delta exp(-H(p))): less is asked where the target itself is unsure.
Neither the draft's distribution nor chance matters, and what is emitted is not
distributed as the target's samples.

Cai et al. 2024, Medusa, https://arxiv.org/abs/2401.10774, section 2.3.1.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from distillspec_jax.core import check
from distillspec_jax.sampling import rows
from distillspec_jax.sampling.verification import token
from distillspec_jax.sampling.verification import verifier


@dataclasses.dataclass(frozen=True)
class Typical(verifier.Verifier):
  """Accepts the longest plausible prefix; the token after it is the target's.

  Greedy, p is at temperature 1, and the target's token is its most likely one.

  Attributes:
    epsilon: probability that always suffices, in (0, 1).
    delta: share of exp(-entropy) that suffices; positive.
  """

  epsilon: float = 0.09
  delta: float = 0.3
  is_lossless: ClassVar[bool] = False

  def __post_init__(self):
    check.in_interval('(0, 1)', owner='Typical', epsilon=self.epsilon)
    check.in_interval('(0, inf)', owner='Typical', delta=self.delta)

  def threshold(self, p_logits: jax.Array) -> jax.Array:
    """float32[...] that a token must exceed, of logits float32[..., V]."""
    uncertainty = jnp.exp(-rows.entropy(p_logits))
    return jnp.minimum(self.epsilon, self.delta * uncertainty)

  def plausible(self, drafted: jax.Array, p_logits: jax.Array) -> jax.Array:
    """bool[B, G]: p of each drafted token is above the threshold."""
    p = jax.nn.softmax(p_logits[:, :-1])
    return rows.pick(p, drafted) > self.threshold(p_logits[:, :-1])

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    del q_logits
    passes = self.plausible(drafted, p_logits)
    num_accepted = verifier.prefix_length(passes, lengths)
    p_at = jax.nn.softmax(verifier.at(p_logits, num_accepted))  # [B, V]
    return verifier.Verdict(num_accepted, verifier.sample_next(keys, p_at))

  def greedy(self, keys, drafted, p_logits, lengths=None):
    also = self.plausible(drafted, p_logits.astype(jnp.float32))
    return token.greedy(drafted, p_logits, lengths, also)
