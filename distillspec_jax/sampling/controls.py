"""Settings that rows of one batch need not share.

`Decoding` is what a program is compiled for; `Controls` are arrays that it
reads, so that rows with other limits, temperatures or prefixes run together
and no program is compiled for them. What is None is not there, and costs
nothing.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import stopping


@flax.struct.dataclass
class Controls:
  """Row by row; None is what `Decoding` says, or nothing.

  Attributes:
    temperature: float32[B]; 0 is greedy.
    max_new_tokens: int32[B], from 1 to that of `Decoding`.
    min_new_tokens: int32[B] tokens before EOS may come.
    prefix: int32[B, P] tokens that the output begins with; they are not among
      the new tokens.
    prefix_segments: int32[B, P], 0 is padding, at the end of a row.
    stop: ends rows at stop strings.
  """

  temperature: jax.Array | None = None
  max_new_tokens: jax.Array | None = None
  min_new_tokens: jax.Array | None = None
  prefix: jax.Array | None = None
  prefix_segments: jax.Array | None = None
  stop: stopping.Automaton | None = None

  def is_greedy(self, decoding: decoding_lib.Decoding) -> bool:
    """Whether all rows are, known when the program is compiled."""
    return self.temperature is None and decoding.greedy

  def limit(self, decoding: decoding_lib.Decoding) -> int | jax.Array:
    """New tokens at most, int32[B] or a number."""
    if self.max_new_tokens is None:
      return decoding.max_new_tokens
    return jnp.clip(self.max_new_tokens, 1, decoding.max_new_tokens)

  def allow(
      self,
      logits: jax.Array,
      number: jax.Array,
      decoding: decoding_lib.Decoding,
      columns: trimmed_vocabulary.Columns | None = None,
  ) -> jax.Array:
    """The logits without EOS where it is too early for it.

    Args:
      logits: float[B, N, V'].
      number: int32[B, N] new tokens before each position.
      decoding: says what EOS is.
      columns: what the logits are of; default: all tokens.
    """
    if self.min_new_tokens is None:
      return logits
    tokens = jnp.arange(logits.shape[-1])
    if columns is not None:
      tokens = columns.tokens(tokens)
    is_eos = ends(tokens, decoding)
    early = number < self.min_new_tokens[:, None]  # [B, N]
    return jnp.where(early[..., None] & is_eos[None, None], -jnp.inf, logits)


NO_CONTROLS = Controls()


def ends(tokens: jax.Array, decoding: decoding_lib.Decoding) -> jax.Array:
  """bool[...]: the token is an EOS."""
  found = jnp.zeros(tokens.shape, bool)
  for eos_id in decoding.eos_ids:
    found |= tokens == eos_id
  return found
