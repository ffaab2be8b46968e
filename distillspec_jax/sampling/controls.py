"""Settings that sequences of one batch need not share.

`Decoding` is what a program is compiled for; `Controls` are arrays that it
reads, so that sequences with different limits, temperatures or prefixes run
together without compiling anything for them. What is None costs nothing.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.core import types
from distillspec_jax.sampling import decoding as decoding_lib


class Controls(flax.struct.PyTreeNode):
  """One value for each row; None is what `Decoding` says, or nothing.

  Attributes:
    temperature: float32[B]; 0 is greedy.
    max_new_tokens: int32[B], from 1 to that of `Decoding`.
    min_new_tokens: int32[B] tokens before EOS is allowed.
    prefix: tokens int32[B, P] that the output begins with; they do not count as
      new tokens.
    stop_state: int32[B] state of the stop strings' automaton before the first
      new token; None: its start.
  """

  temperature: jax.Array | None = None
  max_new_tokens: jax.Array | None = None
  min_new_tokens: jax.Array | None = None
  prefix: types.Prompt | None = None
  stop_state: jax.Array | None = None

  def is_greedy(self, decoding: decoding_lib.Decoding) -> bool:
    """Whether all rows are greedy, known when the program is compiled."""
    return self.temperature is None and decoding.is_greedy

  def limit(self, decoding: decoding_lib.Decoding) -> int | jax.Array:
    """Maximum number of new tokens, int32[B] or a number."""
    if self.max_new_tokens is None:
      return decoding.output_length
    return jnp.clip(self.max_new_tokens, 1, decoding.output_length)

  def forbid_early_eos(
      self,
      logits: jax.Array,
      position: jax.Array,
      decoding: decoding_lib.Decoding,
      vocabulary: trimmed_vocabulary.TrimmedVocabulary | None = None,
  ) -> jax.Array:
    """The logits with -inf for EOS where it is too early for it.

    Args:
      logits: float[B, N, V'].
      position: int32[B, N] new tokens before each position.
      decoding: defines EOS.
      vocabulary: of the logits; None: all tokens.
    """
    if self.min_new_tokens is None:
      return logits
    tokens = jnp.arange(logits.shape[-1])
    if vocabulary is not None:
      tokens = vocabulary.to_tokens(tokens)
    is_early = position < self.min_new_tokens[:, None]  # [B, N]
    is_eos = is_end(tokens, decoding)[None, None]
    return jnp.where(is_early[..., None] & is_eos, -jnp.inf, logits)


NO_CONTROLS = Controls()


def is_end(tokens: jax.Array, decoding: decoding_lib.Decoding) -> jax.Array:
  """bool[...]: the token is an EOS."""
  end = jnp.zeros(tokens.shape, bool)
  for eos_id in decoding.eos_ids:
    end |= tokens == eos_id
  return end
