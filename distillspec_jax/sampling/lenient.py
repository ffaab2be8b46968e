"""Lossy verification: more is accepted, and the law is no longer the target's.

A drafted token x passes with probability min(1, f(p(x)) / q(x)), where f is at
least p. The three functions of DistillSpec (Zhou et al. 2023,
https://arxiv.org/abs/2310.08461, section 5.3), epsilon in (0, 1]:

  linear        f = p / epsilon
  square        f = p / epsilon^2
  exponential   f = p^epsilon

epsilon = 1 is lossless, epsilon -> 0 accepts everything. With 'linear' no token
gets more than p / epsilon (Leviathan et al. 2023, appendix A.5).

What a rejected token is replaced by is not said in the paper; here it is drawn
from max(0, p - q) ('target'), or from max(0, f(p) - q) ('relaxed').
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import shapes
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import verification

FUNCTIONS = ('linear', 'square', 'exponential')
RESIDUALS = ('target', 'relaxed')


class Lenience(NamedTuple):
  """How much more is accepted."""

  function: str
  epsilon: float
  residual: str = 'target'


def check(lenience: tuple) -> Lenience:
  """The lenience of a tuple (function, epsilon[, residual]).

  Raises:
    UserError: there is no such function, or epsilon is not in (0, 1].
  """
  if not 2 <= len(lenience) <= 3:
    raise errors.UserError(
        f"lenience is {lenience!r}; give (function, epsilon), e.g. ('linear',"
        ' 0.5), or None.'
    )
  found = Lenience(*lenience)
  if found.function not in FUNCTIONS:
    raise errors.UserError(
        f'The lenience function is {found.function!r}; it must be one of'
        f' {", ".join(FUNCTIONS)}.'
    )
  is_number = isinstance(found.epsilon, numbers.Real)
  if not is_number or not 0.0 < found.epsilon <= 1.0:
    raise errors.UserError(
        f"lenience's epsilon is {found.epsilon!r}; it must lie in (0, 1] (1 is"
        ' lossless).'
    )
  if found.residual not in RESIDUALS:
    raise errors.UserError(
        f"lenience's residual is {found.residual!r}; it must be one of"
        f' {", ".join(RESIDUALS)}.'
    )
  return found


def relaxed(p: jax.Array, lenience: Lenience) -> jax.Array:
  """f(p) float32[...], at least p."""
  if lenience.function == 'exponential':
    return p**lenience.epsilon
  power = 2 if lenience.function == 'square' else 1
  return p / lenience.epsilon**power


def token(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array,
    p_logits: jax.Array,
    lenience: Lenience,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """Token by token, as `verification.token`, with f(p) in place of p.

  Args:
    keys: key[B], one a row, consumed.
    drafted: int32[B, G] sampled from softmax(q_logits).
    q_logits: float32[B, G, V], the very logits that produced `drafted`.
    p_logits: float32[B, G+1, V] target logits, warped as q's.
    lenience: see above.
    lengths: int32[B] how many are drafted; default: all G.
  """
  verification.check(keys, drafted, q_logits, p_logits)
  p = jax.nn.softmax(p_logits)  # [B, G+1, V]
  q = jax.nn.softmax(q_logits)  # [B, G, V]
  u = randomness.uniform(
      randomness.streams(keys, 'accept'), (drafted.shape[1],)
  )
  p_drafted = rows.pick(p[:, :-1], drafted)  # [B, G]
  passes = u * rows.pick(q, drafted) < relaxed(p_drafted, lenience)
  num_accepted = verification.prefix_length(passes, lengths)
  kept = verification.at(p, num_accepted)  # [B, V]
  q_at = verification.proposal_at(q, num_accepted, lengths)
  if lenience.residual == 'relaxed':
    drafts = drafted.shape[1] if lengths is None else lengths
    is_bonus = (num_accepted == drafts)[:, None]
    kept = jnp.where(is_bonus, kept, relaxed(kept, lenience))
  law = verification.residual(kept, q_at)
  return verification.Verdict(num_accepted, verification.draw_next(keys, law))


def greedy(
    drafted: jax.Array,
    p_logits: jax.Array,
    lenience: Lenience,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """Accepts a token whose f(p) reaches the largest p; corrects greedily.

  Args:
    drafted: int32[B, G].
    p_logits: float[B, G+1, V] target logits, not warped: p is at temperature 1.
    lenience: see above.
    lengths: int32[B] how many are drafted; default: all G.
  """
  shapes.bind_shapes(
      drafted=(drafted, 'B G'), p_logits=(p_logits[:, :-1], 'B G V')
  )
  p = jax.nn.softmax(p_logits[:, :-1].astype(jnp.float32))  # [B, G, V]
  near = relaxed(rows.pick(p, drafted), lenience) >= p.max(axis=-1)
  return verification.greedy(drafted, p_logits, lengths, also=near)
