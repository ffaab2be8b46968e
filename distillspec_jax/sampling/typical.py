"""Typical acceptance, a lossy rule: what the target finds plausible passes.

A drafted token passes if the target gives it at least
min(epsilon, delta exp(-H(p))): less is asked where the target itself is unsure.
Neither the draft's distribution nor chance has a say, and what comes out is not
distributed as the target's samples.

Cai et al. 2024, Medusa, https://arxiv.org/abs/2401.10774, section 2.3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.sampling import rows
from distillspec_jax.sampling import verification


class Typical(NamedTuple):
  """What is plausible enough.

  Attributes:
    epsilon: probability that always suffices, in (0, 1).
    delta: share of exp(-entropy) that suffices; positive.
  """

  epsilon: float = 0.09
  delta: float = 0.3

  def threshold(self, p_logits: jax.Array) -> jax.Array:
    """float32[...] that a token must have more than, of logits [..., V]."""
    unsure = jnp.exp(-rows.entropy(p_logits))
    return jnp.minimum(self.epsilon, self.delta * unsure)


def token(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array | None,
    p_logits: jax.Array,
    typical: Typical,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """Accepts the longest plausible prefix; the token after it is the target's.

  Args:
    keys: key[B], one a row, consumed.
    drafted: int32[B, G], however proposed.
    q_logits: not read.
    p_logits: float32[B, G+1, V] target logits, warped.
    typical: what is plausible.
    lengths: int32[B] how many are drafted; default: all G.
  """
  del q_logits
  passes = plausible(drafted, p_logits, typical)
  num_accepted = verification.prefix_length(passes, lengths)
  p_at = jax.nn.softmax(verification.at(p_logits, num_accepted))  # [B, V]
  return verification.Verdict(num_accepted, verification.draw_next(keys, p_at))


def greedy(
    drafted: jax.Array,
    p_logits: jax.Array,
    typical: Typical,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """As `token`, but the target's token is its most likely one.

  Args:
    drafted: int32[B, G].
    p_logits: float[B, G+1, V] target logits, not warped: p is at temperature 1.
    typical: what is plausible.
    lengths: int32[B] how many are drafted; default: all G.
  """
  also = plausible(drafted, p_logits.astype(jnp.float32), typical)
  return verification.greedy(drafted, p_logits, lengths, also)


def plausible(
    drafted: jax.Array, p_logits: jax.Array, typical: Typical
) -> jax.Array:
  """bool[B, G]: p of each drafted token is above the threshold."""
  p = jax.nn.softmax(p_logits[:, :-1])
  return rows.pick(p, drafted) > typical.threshold(p_logits[:, :-1])
