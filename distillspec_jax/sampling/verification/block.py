"""Block verification: a drafted block is judged as a whole, and still exactly.

Token verification decides token by token and so throws away what a likely later
part of the block could have saved. Here the chance that a prefix is accepted
depends on all of it, which is never worse in expectation and leaves the
target's distribution unchanged.

Sun et al. 2024, https://arxiv.org/abs/2403.10444, algorithm 2.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distillspec_jax.sampling import rows
from distillspec_jax.sampling.verification import token
from distillspec_jax.sampling.verification import verifier


@dataclasses.dataclass(frozen=True)
class Block(verifier.Verifier):
  """Accepts the longest prefix that passes, and samples the token after it.

  With w_0 = 1 and w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)), prefix i < G
  passes with probability h_i = S_i / (S_i + 1 - w_i), where
  S_i = sum_v max(0, w_i p_{i+1}(v) - q_{i+1}(v)), and the whole block with
  w_G. The correction after i tokens is distributed as
  max(0, w_i p_{i+1} - q_{i+1}), normalised. At G = 1, and greedy, it is token
  verification.

  The length of a block may be chosen by any rule that looks at the draft alone;
  it takes the place of G in the formulas.
  """

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verifier.check_shapes(keys, drafted, q_logits, p_logits)
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

    # S_i for 0 < i < G. Beyond a block's own length it is computed from
    # arbitrary logits, and not used: `chance` takes w there.
    rest = weights[:, 1:-1, None] * p[:, 1:-1] - q[:, 1:]
    mass = jnp.sum(jnp.maximum(rest, 0.0), axis=-1)  # [B, G-1]
    lost = 1.0 - weights[:, 1:-1]
    # 0 / 0 where p equals q and nothing has been lost so far: it passes.
    is_sure = mass + lost == 0.0
    chance = jnp.where(
        is_sure, 1.0, mass / jnp.where(is_sure, 1.0, mass + lost)
    )
    chance = jnp.pad(chance, ((0, 0), (0, 1)))  # [B, G]
    number = jnp.arange(1, size + 1)[None]
    last = size if lengths is None else lengths[:, None]
    chance = jnp.where(number < last, chance, weights[:, 1:])
    u = verifier.uniforms(keys, (size,))
    # A later prefix may pass where an earlier one did not, so this is a maximum
    # and not a cumulative product.
    passes = (u < chance) & (number <= last)
    num_accepted = jnp.max(jnp.where(passes, number, 0), axis=1)
    weight = verifier.at(weights, num_accepted)[:, None]
    rest = verifier.residual(
        weight * verifier.at(p, num_accepted),
        verifier.proposal_at(q, num_accepted, lengths),
    )
    return verifier.Verdict(num_accepted, verifier.sample_next(keys, rest))

  def greedy(self, keys, drafted, p_logits, lengths=None):
    return token.greedy(drafted, p_logits, lengths)
