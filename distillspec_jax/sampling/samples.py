"""What generation returns: tokens, lengths, and how each token came about."""

from __future__ import annotations

import enum

import flax.struct
import jax
import jax.numpy as jnp


class Origin(enum.IntEnum):
  """Where a token comes from."""

  PADDING = 0
  TARGET = 1  # sampled from the target alone (autoregressive)
  ACCEPTED = 2  # drafted, and accepted by the target
  CORRECTED = 3  # the target's, in place of a rejected token
  BONUS = 4  # the target's, after a block that was accepted in full


class Statistics(flax.struct.PyTreeNode):
  """Counts for each row, over the tokens that were emitted.

  Attributes:
    blocks: int32[B] target calls.
    drafted: int32[B] tokens proposed; length * paths per block, or fewer with
      adaptive draft length.
    accepted: int32[B] drafted tokens that were emitted.
    emitted: int32[B] all tokens, EOS included.
    reached_at: int32[B, G] how often the token at this position of a block was
      judged: all before it were accepted, and the sequence had not ended.
    accepted_at: int32[B, G] how often it was then accepted.
  """

  blocks: jax.Array
  drafted: jax.Array
  accepted: jax.Array
  emitted: jax.Array
  reached_at: jax.Array
  accepted_at: jax.Array

  @classmethod
  def zeros(cls, rows: int, block_length: int) -> Statistics:
    row = jnp.zeros(rows, jnp.int32)
    block = jnp.zeros((rows, block_length), jnp.int32)
    return cls(row, row, row, row, block, block)

  @property
  def acceptance_rate(self) -> jax.Array:
    """float32[]: accepted over judged drafted tokens, a ratio of sums."""
    judged = jnp.sum(self.reached_at)
    return jnp.sum(self.accepted) / jnp.maximum(judged, 1)

  @property
  def block_efficiency(self) -> jax.Array:
    """float32[]: tokens per target call, in [1, G + 1]."""
    return jnp.sum(self.emitted) / jnp.maximum(jnp.sum(self.blocks), 1)


class Samples(flax.struct.PyTreeNode):
  """Generated sequences.

  Attributes:
    tokens: int32[B, L], EOS included, 0 after it.
    lengths: int32[B] in [1, L], EOS included.
    origins: int8[B, L], the `Origin` of each token.
    statistics: autoregressive, each token is a target call and G is 0.
    log_probs: float32[B, L] nats, of each token under the target's own
      distribution (not warped), 0 after the end; None unless asked for.
    nonfinite_at: int32[B, 2] after how many tokens the logits of the target, or
      of the draft, were not finite; the sequence ends there. -1: never.
  """

  tokens: jax.Array
  lengths: jax.Array
  origins: jax.Array
  statistics: Statistics
  log_probs: jax.Array | None
  nonfinite_at: jax.Array
