"""Verification of a drafted block: the step that keeps speculation exact.

Pure functions of drafted tokens and both models' warped logits; the loop that
calls them is in `speculative.py`, the proofs by enumeration in the tests.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import shapes
from distillspec_jax.sampling import rows


class Verdict(NamedTuple):
  """What a block's verification decides."""

  num_accepted: jax.Array  # int32[B] in [0, G]
  next_token: jax.Array  # int32[B] the correction, or a bonus if all G pass
  path: jax.Array | None = None  # int32[B], of several drafts: which


def token(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array,
    p_logits: jax.Array,
    lengths: jax.Array | None = None,
) -> Verdict:
  """Accepts a prefix of the drafted block and samples the token after it.

  A drafted token x passes with probability min(1, p(x) / q(x)); what is
  emitted has exactly the target's distribution, whatever the draft (Leviathan
  et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1). Example, G = 3,
  second rejected:

    drafted = [a, b, c]   passes = [1, 0, 1]   emitted = [a, x]
    where x ~ max(p - q, 0) at position 1, normalised.

  Args:
    keys: key[B], one a row, consumed.
    drafted: int32[B, G] sampled from softmax(q_logits).
    q_logits: float32[B, G, V], the very logits that produced `drafted`.
    p_logits: float32[B, G+1, V] target logits, warped as q's, same positions
      plus one more.
    lengths: int32[B] in [1, G], how many of a row's tokens are drafted; the
      token after them is a bonus. Default: all G.
  """
  check(keys, drafted, q_logits, p_logits)
  p = jax.nn.softmax(p_logits)  # [B, G+1, V]
  q = jax.nn.softmax(q_logits)  # [B, G, V]
  u = randomness.uniform(
      randomness.streams(keys, 'accept'), (drafted.shape[1],)
  )
  # u in [0, 1): q > 0, p = 0 never passes.
  passes = u * rows.pick(q, drafted) < rows.pick(p[:, :-1], drafted)
  num_accepted = prefix_length(passes, lengths)

  # Only the one position after the accepted prefix is needed. A q of zeros
  # makes the bonus token the same formula, max(p - 0, 0).
  p_at = at(p, num_accepted)  # [B, V]
  q_at = proposal_at(q, num_accepted, lengths)
  return Verdict(num_accepted, draw_next(keys, residual(p_at, q_at)))


def greedy(
    drafted: jax.Array,
    p_logits: jax.Array,
    lengths: jax.Array | None = None,
    also: jax.Array | None = None,
) -> Verdict:
  """Accepts what the target would have said itself; the limit of `token`.

  Args:
    drafted: int32[B, G].
    p_logits: float[B, G+1, V] target logits, not warped.
    lengths: as in `token`.
    also: bool[B, G], which tokens pass besides the target's best; lossy.
  """
  shapes.bind_shapes(
      drafted=(drafted, 'B G'), p_logits=(p_logits[:, :-1], 'B G V')
  )
  best = rows.best(p_logits)  # [B, G+1]
  passes = drafted == best[:, :-1]
  if also is not None:
    passes |= also
  num_accepted = prefix_length(passes, lengths)
  return Verdict(num_accepted, at(best, num_accepted))


def residual(p: jax.Array, q: jax.Array) -> jax.Array:
  """What is left of p when a token from q is rejected: float32[B, V].

  max(p - q, 0), normalised. Where p equals q nothing is left, and sampling from
  all zeros would return token 0, which is padding; the limit is p.

  Args:
    p: float32[B, V].
    q: float32[B, V]; zeros leave p.
  """
  left = jnp.maximum(p - q, 0.0)
  mass = jnp.sum(left, axis=-1, keepdims=True)
  return jnp.where(mass == 0.0, p, left / jnp.where(mass == 0.0, 1.0, mass))


def draw_next(keys: jax.Array, law: jax.Array) -> jax.Array:
  """int32[B] the token after the accepted prefix, of key[B].

  Args:
    keys: key[B] of the block.
    law: float32[B, V] its probabilities, up to a factor.
  """
  return randomness.categorical(randomness.streams(keys, 'next'), jnp.log(law))


def prefix_length(
    passes: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
  """How many pass before the first that does not, bool[B, G] -> int32[B].

  Args:
    passes: bool[B, G].
    lengths: int32[B], what is not drafted does not pass; default: all is.
  """
  if lengths is not None:
    passes &= jnp.arange(passes.shape[1])[None] < lengths[:, None]
  return jnp.cumprod(passes.astype(jnp.int32), axis=1).sum(axis=1)


def proposal_at(
    q: jax.Array, position: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
  """q where a token was drafted, zeros after the last: float32[B, V].

  Args:
    q: float32[B, G, V].
    position: int32[B] in [0, G].
    lengths: int32[B]; default: G.
  """
  size = q.shape[1]
  lengths = size if lengths is None else lengths
  q_at = at(q, jnp.minimum(position, size - 1))
  return jnp.where((position < lengths)[:, None], q_at, 0.0)


def at(array: jax.Array, position: jax.Array) -> jax.Array:
  """array[b, position[b]], [B, N, ...] -> [B, ...]."""
  return jax.vmap(lambda row, i: row[i])(array, position)


def check(keys, drafted, q_logits, p_logits) -> None:
  shapes.bind_shapes(
      keys=(keys, 'B'),
      drafted=(drafted, 'B G'),
      q_logits=(q_logits, 'B G V'),
      p_logits=(p_logits[:, :-1], 'B G V'),
  )
