"""Drafting: the draft's proposals for the next block, one step a token."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.models import transformer
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import warping


class Block(NamedTuple):
  """What the draft proposes.

  Attributes:
    tokens: int32[B, G].
    logits: float32[B, G, V] that they were drawn from; greedy: None.
    lengths: int32[B] in [1, G] how many count; None: all G.
    finite: bool[B] the draft's logits were numbers.
  """

  tokens: jax.Array
  logits: jax.Array | None
  lengths: jax.Array | None
  finite: jax.Array


def draft_block(
    draft: transformer.Transformer,
    params: Any,
    state: transformer.DecodeState,
    tokens: jax.Array,
    total: jax.Array,
    number: jax.Array,
    done: jax.Array,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls,
    vocabulary: int,
) -> tuple[transformer.DecodeState, Block]:
  """The draft's cache, and its proposals after the tokens so far.

  Args:
    draft: the model that proposes.
    params: its parameters.
    state: its cache; holds the first `total - 2` tokens at least.
    tokens: int32[B, N] committed tokens.
    total: int32[B] how many there are.
    number: int32[B] how many of them are new.
    done: bool[B] rows for which nothing needs to be drafted.
    keys: key[B] of this block.
    decoding: settings.
    controls: settings of rows.
    vocabulary: logits from here on are padding.
  """
  size, batch = decoding.block_length, tokens.shape[0]
  is_greedy = controls.is_greedy(decoding)
  columns = draft.columns(vocabulary)

  def propose(place, hidden):
    """A token of each row, its logits, and what is known of them."""
    logits = columns.cut(draft.unembed(params, hidden))  # [B, 1, V']
    now = number[:, None] + place
    logits = controls.allow(logits, now, decoding, columns)[:, 0]
    goes_on = _goes_on(logits, decoding)
    if is_greedy:
      best = rows.best(logits)
      finite = rows.is_finite(logits, best)
      return columns.tokens(best), None, goes_on, finite
    finite = jnp.isfinite(jnp.max(logits, axis=-1))
    logits = warping.warp(logits, decoding, controls.temperature)
    now = randomness.events(randomness.streams(keys, 'draft'), place)
    token = columns.tokens(randomness.categorical(now, logits))
    return token, logits, goes_on, finite

  # After a block that was accepted whole the draft has not consumed its own
  # last token. Feeding the last two tokens always, the first of which may
  # overwrite itself, makes that case no case. A row of one token feeds it and
  # a meaningless second, whose slot the next token overwrites.
  start = jnp.maximum(total - 2, 0)
  hidden, cache = draft.advance(
      params, draft.rewind(state, start), rows.window(tokens, start, 2)
  )
  newest = jnp.minimum(total, 2) - 1
  first = propose(0, rows.window(hidden, newest, 1))
  token, logits, goes_on, finite = first
  cache = draft.rewind(cache, total)

  def unfinished(carry):
    place, _, _, _, _, is_open, _, _ = carry
    return (place < size) & jnp.any(is_open)

  def next_token(carry):
    place, cache, drafted, proposed, token, is_open, lengths, finite = carry
    hidden, cache = draft.advance(params, cache, token[:, None])
    token, logits, goes_on, is_finite = propose(place, hidden)
    return (
        place + 1,
        cache,
        drafted.at[place].set(token),
        None if is_greedy else proposed.at[place].set(logits),
        token,
        is_open & goes_on,
        lengths + is_open,
        finite & (is_finite | ~is_open),
    )

  drafted = jnp.zeros((size, batch), jnp.int32).at[0].set(token)
  proposed = None
  if not is_greedy:
    proposed = jnp.zeros((size, *logits.shape), logits.dtype).at[0].set(logits)
  carry = (
      jnp.int32(1), cache, drafted, proposed, token,
      goes_on & ~done, jnp.ones(batch, jnp.int32), finite,
  )  # fmt: skip
  carry = jax.lax.while_loop(unfinished, next_token, carry)
  _, cache, drafted, proposed, _, _, lengths, finite = carry
  if proposed is not None:
    # [G, B, V'] -> [B, G, V]; a token without a column was not proposed.
    proposed = columns.spread(jnp.swapaxes(proposed, 0, 1))
  if decoding.draft_stop is None:
    lengths = None
  return cache, Block(drafted.T, proposed, lengths, finite)


def _goes_on(logits: jax.Array, decoding: decoding_lib.Decoding) -> jax.Array:
  """bool[B]: the draft is sure enough to draft another token after this one.

  Args:
    logits: float[B, V] of the draft, not warped.
    decoding: with `draft_stop`.
  """
  if decoding.draft_stop is None:
    return jnp.ones(logits.shape[0], bool)
  name, threshold = decoding.draft_stop
  log_q = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  if name == 'confidence':
    return jnp.exp(jnp.max(log_q, axis=-1)) > threshold
  q = jnp.exp(log_q)
  entropy = -jnp.sum(q * jnp.where(q > 0.0, log_q, 0.0), axis=-1)
  return entropy <= threshold
