"""Speculative generation: draft, verify, commit and rewind in one program.

One block of a row whose last committed token stands at position n - 1:

  draft    feeds what it has not consumed (one or two tokens), then its own
           proposals x_1 .. x_{G-1}, and so proposes x_1 .. x_G
  target   reads [last, x_1 .. x_G] at once and gives p for G + 1 positions
  verdict  how many are accepted, and the target's own token after them
  commit   the tokens are written at n; n grows by 1 .. G + 1
  rewind   both caches are cut back by setting their lengths

Every row is at its own n. The loop is a `while_loop` on the device; nothing
goes to the host before it ends.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.models import transformer
from distillspec_jax.sampling import block_verification
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import lenient
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping


@flax.struct.dataclass
class SpeculativeState:
  """State of the speculative loop. Rows of the batch advance at own speed.

  Attributes:
    step: int32[] blocks so far; numbers the random events.
    tokens: int32[B, P + L + G + 1] prefix and emitted tokens, 0 after `total`.
    origins: int8[B, P + L + G + 1].
    total: int32[B] tokens in `tokens`, the prefix included.
    done: bool[B] the row has emitted EOS or is full.
    target: its cache; holds the first `total - 1` tokens.
    draft: its cache; holds the first `total - 2` tokens at least.
    statistics: counts so far.
  """

  step: jax.Array
  tokens: jax.Array
  origins: jax.Array
  total: jax.Array
  done: jax.Array
  target: transformer.DecodeState
  draft: transformer.DecodeState
  statistics: samples_lib.Statistics


@functools.partial(jax.jit, static_argnames=('target', 'draft', 'decoding'))
def generate(
    target: transformer.Transformer,
    target_params: Any,
    draft: transformer.Transformer,
    draft_params: Any,
    inputs: jax.Array,
    input_segments: jax.Array,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
) -> samples_lib.Samples:
  """Rows with the target's distribution, proposed by the draft.

  Greedy, they are the tokens of the target's own greedy decoding.

  Args:
    target: the model that decides.
    target_params: its parameters.
    draft: the model that proposes; it reads the same inputs.
    draft_params: its parameters.
    inputs: int32[B, S].
    input_segments: int32[B, S], 0 is padding.
    keys: key[B], one a row.
    decoding: settings, the same for both models.
  """
  # Rows of the larger vocabulary beyond the smaller are padding.
  vocabulary = min(target.config.vocab_size, draft.config.vocab_size)
  rows, block = inputs.shape[0], decoding.block_length
  slack = decoding.max_new_tokens + block + 1
  target_state, prefix = target.begin(
      target_params, inputs, input_segments, slack
  )
  draft_state, _ = draft.begin(draft_params, inputs, input_segments, slack)
  tokens = jnp.pad(prefix.tokens, ((0, 0), (0, slack)))
  state = SpeculativeState(
      step=jnp.int32(0),
      tokens=tokens,
      origins=jnp.zeros(tokens.shape, jnp.int8),
      total=prefix.length,
      done=jnp.zeros(rows, bool),
      target=target_state,
      draft=draft_state,
      statistics=samples_lib.Statistics.zeros(rows, block),
  )

  def body(state: SpeculativeState) -> SpeculativeState:
    block_keys = randomness.events(keys, state.step)
    draft_state, drafted, q_logits = _draft_block(
        draft, draft_params, state, block_keys, decoding, vocabulary
    )
    last = _slice(state.tokens, state.total - 1, 1)
    hidden, target_state = target.advance(
        target_params,
        target.rewind(state.target, state.total - 1),
        jnp.concatenate([last, drafted], axis=1),
    )
    p_logits = target.unembed(target_params, hidden)[..., :vocabulary]
    verdict = _verify(block_keys, drafted, q_logits, p_logits, decoding)
    state = state.replace(target=target_state, draft=draft_state)
    return _commit(state, prefix.length, drafted, verdict, decoding)

  state = jax.lax.while_loop(lambda state: ~jnp.all(state.done), body, state)
  length = decoding.max_new_tokens
  return samples_lib.Samples(
      tokens=_slice(state.tokens, prefix.length, length),
      lengths=state.total - prefix.length,
      origins=_slice(state.origins, prefix.length, length),
      statistics=state.statistics,
  )


def _verify(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array | None,
    p_logits: jax.Array,
    decoding: decoding_lib.Decoding,
) -> verification.Verdict:
  """The verdict of the rule that the settings name."""
  if decoding.greedy:
    if decoding.lenience is not None:
      return lenient.greedy(drafted, p_logits, decoding.lenience)
    return verification.greedy(drafted, p_logits)
  p_logits = warping.warp(p_logits, decoding)
  if decoding.lenience is not None:
    return lenient.token(keys, drafted, q_logits, p_logits, decoding.lenience)
  if decoding.verification == 'block':
    return block_verification.block(keys, drafted, q_logits, p_logits)
  return verification.token(keys, drafted, q_logits, p_logits)


def _draft_block(
    draft: transformer.Transformer,
    params: Any,
    state: SpeculativeState,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    vocabulary: int,
) -> tuple[transformer.DecodeState, jax.Array, jax.Array | None]:
  """The draft's cache, its proposals int32[B, G], their logits [B, G, V]."""

  def propose(number, hidden):
    logits = draft.unembed(params, hidden)[:, 0, :vocabulary]
    if decoding.greedy:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32), None
    logits = warping.warp(logits, decoding)
    keys_now = randomness.events(randomness.streams(keys, 'draft'), number)
    return randomness.categorical(keys_now, logits), logits

  # After a block that was accepted whole the draft has not consumed its own
  # last token. Feeding the last two tokens always, the first of which may
  # overwrite itself, makes that case no case. A row of one token feeds it and
  # a meaningless second, whose slot the next token overwrites.
  start = jnp.maximum(state.total - 2, 0)
  hidden, cache = draft.advance(
      params, draft.rewind(state.draft, start), _slice(state.tokens, start, 2)
  )
  newest = jnp.minimum(state.total, 2) - 1
  token, logits = propose(0, _slice(hidden, newest, 1))
  cache = draft.rewind(cache, state.total)

  def next_token(carry, number):
    cache, token = carry
    hidden, cache = draft.advance(params, cache, token[:, None])
    token, logits = propose(number, hidden)
    return (cache, token), (token, logits)

  numbers = jnp.arange(1, decoding.block_length)
  (cache, _), (tokens, more) = jax.lax.scan(next_token, (cache, token), numbers)
  drafted = jnp.concatenate([token[None], tokens]).T  # [G, B] -> [B, G]
  if decoding.greedy:
    return cache, drafted, None
  q_logits = jnp.concatenate([logits[None], more])
  return cache, drafted, jnp.swapaxes(q_logits, 0, 1)


def _commit(
    state: SpeculativeState,
    prefix_length: jax.Array,
    drafted: jax.Array,
    verdict: verification.Verdict,
    decoding: decoding_lib.Decoding,
) -> SpeculativeState:
  """Writes what the verdict lets through, up to EOS and to a full row."""
  block = decoding.block_length
  place = jnp.arange(block + 1)[None]  # [1, G + 1]
  accepted = verdict.num_accepted[:, None]
  tokens = jnp.where(
      place < accepted,
      jnp.pad(drafted, ((0, 0), (0, 1))),
      verdict.next_token[:, None],
  )
  origins = jnp.where(
      place < accepted,
      samples_lib.Origin.ACCEPTED,
      jnp.where(
          accepted == block,
          samples_lib.Origin.BONUS,
          samples_lib.Origin.CORRECTED,
      ),
  )
  is_eos = (tokens == decoding.eos_id) & (place <= accepted)
  to_eos = jnp.where(is_eos.any(1), jnp.argmax(is_eos, axis=1), block) + 1
  room = prefix_length + decoding.max_new_tokens - state.total
  count = jnp.minimum(jnp.minimum(verdict.num_accepted + 1, to_eos), room)
  count = jnp.where(state.done, 0, count)

  written = place < count[:, None]
  total = state.total + count
  ended = (is_eos & written).any(1)
  full = total == prefix_length + decoding.max_new_tokens
  active = ~state.done
  judged = written[:, :block]
  passed = judged & (place[:, :block] < accepted)
  old = state.statistics
  return state.replace(
      step=state.step + 1,
      tokens=_write(state.tokens, jnp.where(written, tokens, 0), state.total),
      origins=_write(
          state.origins, jnp.where(written, origins, 0), state.total
      ),
      total=total,
      done=state.done | ended | full,
      statistics=samples_lib.Statistics(
          blocks=old.blocks + active,
          drafted=old.drafted + active * block,
          accepted=old.accepted + jnp.sum(passed, axis=1, dtype=jnp.int32),
          emitted=old.emitted + count,
          reached_at=old.reached_at + judged,
          accepted_at=old.accepted_at + passed,
      ),
  )


def _slice(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
  """array[b, start[b] : start[b] + size], [B, N, ...] -> [B, size, ...]."""

  def row(row, start):
    return jax.lax.dynamic_slice_in_dim(row, start, size)

  return jax.vmap(row)(array, start)


def _write(array: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  """The array with new [B, N] at start[b] of each row."""

  def row(row, new, start):
    return jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=0)

  return jax.vmap(row)(array, new.astype(array.dtype), start)
