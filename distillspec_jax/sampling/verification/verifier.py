"""What a verifier is, and the steps that verifiers share.

A verifier decides how many of a block's drafted tokens are accepted, and which
token follows them. It is a value, a frozen dataclass, whose two functions are
pure. The loop that calls them is in `speculative.py`; the proofs by enumeration
are in the tests.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import objects
from distillspec_jax.core import randomness
from distillspec_jax.core import shapes


class Verdict(NamedTuple):
  """What is decided about a block."""

  num_accepted: jax.Array  # int32[B] in [0, G]
  next_token: jax.Array  # int32[B] the correction, or a bonus if all G pass
  path: jax.Array | None = None  # int32[B], which one, of multi-path drafts


class Verifier:
  """Base class; subclasses are frozen dataclasses.

  Attributes:
    is_lossless: whether what is emitted has the target's distribution.
    supports_paths: whether multi-path drafts can be judged; arrays then have an
      axis K, see `multi_path`.
  """

  is_lossless: ClassVar[bool] = True
  supports_paths: ClassVar[bool] = False

  def sampled(
      self,
      keys: jax.Array,
      drafted: jax.Array,
      q_logits: jax.Array,
      p_logits: jax.Array,
      lengths: jax.Array | None = None,
  ) -> Verdict:
    """The verdict on sampled tokens.

    Args:
      keys: key[B], one for each row, consumed.
      drafted: int32[B, G] sampled from softmax(q_logits).
      q_logits: float32[B, G, V], the very logits that produced `drafted`.
      p_logits: float32[B, G+1, V] target logits, warped as the draft's, at the
        same positions plus one more.
      lengths: int32[B] in [1, G], how many of a row's tokens are drafted; the
        token after them is a bonus. Default: all G.
    """
    raise NotImplementedError

  def greedy(
      self,
      keys: jax.Array,
      drafted: jax.Array,
      p_logits: jax.Array,
      lengths: jax.Array | None = None,
  ) -> Verdict:
    """The verdict on greedy tokens; the limit of `sampled` at temperature 0.

    Args:
      keys: key[B], one for each row, consumed.
      drafted: int32[B, G], the draft's most likely tokens.
      p_logits: float[B, G+1, V] target logits, not warped.
      lengths: as in `sampled`.
    """
    raise NotImplementedError

  def describe(self) -> str:
    """The verifier's name in results, as in 'lenient(linear, 0.5)'."""
    return objects.describe(self)


def residual(p: jax.Array, q: jax.Array) -> jax.Array:
  """What remains of p once a token from q is rejected: float32[B, V].

  max(p - q, 0), normalised. Where p equals q nothing remains, and sampling from
  all zeros would return token 0, which is padding; the limit is p.

  Args:
    p: float32[B, V].
    q: float32[B, V]; zeros leave p.
  """
  rest = jnp.maximum(p - q, 0.0)
  mass = jnp.sum(rest, axis=-1, keepdims=True)
  return jnp.where(mass == 0.0, p, rest / jnp.where(mass == 0.0, 1.0, mass))


def sample_next(keys: jax.Array, distribution: jax.Array) -> jax.Array:
  """int32[B] the token after the accepted prefix.

  Args:
    keys: key[B] of the block.
    distribution: float32[B, V], need not be normalised.
  """
  logits = jnp.log(distribution)
  return randomness.categorical(randomness.streams(keys, 'next'), logits)


def uniforms(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """float32[B, *shape] in [0, 1), by which tokens are accepted."""
  return randomness.uniform(randomness.streams(keys, 'accept'), shape)


def prefix_length(
    passes: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
  """How many tokens pass before the first that does not.

  Args:
    passes: bool[B, G].
    lengths: int32[B], tokens from here on are not drafted and do not pass.

  Returns:
    int32[B].
  """
  if lengths is not None:
    passes &= jnp.arange(passes.shape[1])[None] < lengths[:, None]
  return jnp.cumprod(passes.astype(jnp.int32), axis=1).sum(axis=1)


def proposal_at(
    q: jax.Array, position: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
  """q at a drafted position, zeros after the last: float32[B, V].

  With zeros for q the bonus token needs no case of its own: max(p - 0, 0) = p.

  Args:
    q: float32[B, G, V].
    position: int32[B] in [0, G].
    lengths: int32[B]; default: G.
  """
  size = q.shape[1]
  is_drafted = position < (size if lengths is None else lengths)
  q_at = at(q, jnp.minimum(position, size - 1))
  return jnp.where(is_drafted[:, None], q_at, 0.0)


def at(array: jax.Array, position: jax.Array) -> jax.Array:
  """array[b, position[b]], [B, N, ...] -> [B, ...]."""
  return jax.vmap(lambda row, i: row[i])(array, position)


def check_shapes(keys, drafted, q_logits, p_logits) -> None:
  """Raises ValueError unless the arrays of `Verifier.sampled` fit together."""
  shapes.bind_shapes(
      keys=(keys, 'B'),
      drafted=(drafted, 'B G'),
      q_logits=(q_logits, 'B G V'),
      p_logits=(p_logits[:, :-1], 'B G V'),
  )
