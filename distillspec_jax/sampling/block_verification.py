"""Block verification: a drafted block is judged as a whole, and still exactly.

Token verification decides token by token and so throws away what a likely
later part of the block could have saved. Here the chance that a prefix is
accepted depends on the whole of it, which is never worse in expectation and
has the target's law all the same.

Sun et al. 2024, https://arxiv.org/abs/2403.10444, algorithm 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import verification


def block(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array,
    p_logits: jax.Array,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """Accepts the longest prefix that passes, and samples the token after it.

  With w_0 = 1 and w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)), prefix i < G
  passes with probability h_i = S_i / (S_i + 1 - w_i), where
  S_i = sum_v max(0, w_i p_{i+1}(v) - q_{i+1}(v)), and the whole block with
  w_G. The correction after i tokens has the law max(0, w_i p_{i+1} - q_{i+1}),
  normalised. At G = 1 it is token verification.

  Args:
    keys: key[B], one a row, consumed.
    drafted: int32[B, G] sampled from softmax(q_logits).
    q_logits: float32[B, G, V], the very logits that produced `drafted`.
    p_logits: float32[B, G+1, V] target logits, warped as q's, same positions
      plus one more.
    lengths: int32[B] in [1, G], how many of a row's tokens are drafted, by any
      rule that looks at nothing but the draft; G in the formulas. Default: all.
  """
  verification.check(keys, drafted, q_logits, p_logits)
  size = drafted.shape[1]
  p = jax.nn.softmax(p_logits)  # [B, G+1, V]
  q = jax.nn.softmax(q_logits)  # [B, G, V]
  ratios = rows.pick(p[:, :-1], drafted) / rows.pick(q, drafted)  # [B, G]

  def grow(weight, ratio):
    weight = jnp.minimum(1.0, weight * ratio)
    return weight, weight

  one = jnp.ones(drafted.shape[0])
  _, weights = jax.lax.scan(grow, one, ratios.T)
  weights = jnp.concatenate([one[:, None], weights.T], axis=1)  # [B, G+1]

  # Where the next token was not drafted, the mass is not used.
  left = weights[:, 1:-1, None] * p[:, 1:-1] - q[:, 1:]
  mass = jnp.sum(jnp.maximum(left, 0.0), axis=-1)  # [B, G-1]
  lost = 1.0 - weights[:, 1:-1]
  # 0 / 0 where p equals q and nothing was lost so far: it passes.
  sure = mass + lost == 0.0
  chance = jnp.where(sure, 1.0, mass / jnp.where(sure, 1.0, mass + lost))
  chance = jnp.pad(chance, ((0, 0), (0, 1)))  # [B, G]
  number = jnp.arange(1, size + 1)[None]
  last = size if lengths is None else lengths[:, None]
  chance = jnp.where(number < last, chance, weights[:, 1:])
  u = randomness.uniform(randomness.streams(keys, 'accept'), (size,))
  # A later prefix may pass where an earlier one did not.
  passes = (u < chance) & (number <= last)
  num_accepted = jnp.max(jnp.where(passes, number, 0), axis=1)
  weight = verification.at(weights, num_accepted)[:, None]
  law = verification.residual(
      weight * verification.at(p, num_accepted),
      verification.proposal_at(q, num_accepted, lengths),
  )
  return verification.Verdict(num_accepted, verification.draw_next(keys, law))
