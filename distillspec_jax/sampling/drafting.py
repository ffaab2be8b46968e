"""Drafting: the draft's proposals for the next block, one step a token.

Several drafts part at the first token and share a cache and each step: sampled,
they are independent; greedy, they begin with the draft's best tokens, one each,
and go on with the best after it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh
from distillspec_jax.models import path_slots
from distillspec_jax.models import transformer
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import warping


class Block(NamedTuple):
  """What the draft proposes; where it is one path the axis K is not there.

  Attributes:
    tokens: int32[B, G, K].
    logits: float32[B, G, K, V] that they were drawn from; greedy: None.
    lengths: int32[B, K] in [1, G] how many count; None: all G.
    finite: bool[B] the draft's logits were numbers.
    count: int32[B] tokens that count, of all paths.
  """

  tokens: jax.Array
  logits: jax.Array | None
  lengths: jax.Array | None
  finite: jax.Array
  count: jax.Array

  def along(self, path: jax.Array) -> Block:
    """What path int32[B] alone proposes, without its logits."""
    lengths = self.lengths
    return self._replace(
        tokens=rows.pick(self.tokens, path[:, None]),
        logits=None,
        lengths=None if lengths is None else rows.pick(lengths, path),
    )


def fork(
    total: jax.Array, decoding: decoding_lib.Decoding
) -> path_slots.Fork | None:
  """Where several drafts part: after `total` int32[B] tokens."""
  if decoding.num_drafts == 1:
    return None
  return path_slots.Fork(total, decoding.num_drafts)


def depths(decoding: decoding_lib.Decoding) -> np.ndarray:
  """int32[1 + G * K]: tokens after the last committed one, up to each read."""
  size, paths = decoding.block_length, decoding.num_drafts
  return np.repeat(np.arange(size + 1, dtype=np.int32), [1] + [paths] * size)


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

  of_state = draft.row_places()
  controls = controls.replace(stop=None)  # which no draft asks for
  state, block = mesh.shard_over_batch(
      functools.partial(_draft_block, draft, decoding, vocabulary),
      whole=params,
      rows=(tokens, state, total, number, done, keys, controls),
      axes=() if draft.is_tensor_parallel else mesh.AXES,
      places=(0, of_state, 0, 0, 0, 0, 0),
      out_places=(of_state, 0),
  )
  logits = block.logits
  if logits is not None:  # they go where the target has those of its own
    names = ('batch', *[None] * (logits.ndim - 2), 'vocab')
    logits = layouts.constrain(logits, names, layouts.SPLIT)
  return state, block._replace(logits=logits)


def _draft_block(draft, decoding, vocabulary, params, rows_):
  """`draft_block`, of one device's rows."""
  tokens, state, total, number, done, keys, controls = rows_
  size, paths = decoding.block_length, decoding.num_drafts
  shape = (tokens.shape[0], paths)  # [B, K]
  is_greedy = controls.is_greedy(decoding)
  columns = draft.columns(vocabulary)

  def propose(place, hidden):
    """A token of each path, its logits, and what is known of them.

    Before the paths part `hidden` is float[B, 1, D], then float[B, K, D].
    """
    logits = columns.cut(draft.unembed(params, hidden))  # [B, 1 or K, V']
    now = number[:, None] + place
    logits = controls.allow(logits, now, decoding, columns)
    _check_choice(logits.shape[-1], paths)
    goes_on = jnp.broadcast_to(_goes_on(logits, decoding), shape)
    finite = rows.is_finite(logits)
    if is_greedy:
      return columns.tokens(_best(logits, paths)), None, goes_on, finite
    warped = warping.warp(logits, decoding, controls.temperature)
    warped = jnp.broadcast_to(warped, (*shape, warped.shape[-1]))
    now = randomness.events(randomness.streams(keys, 'draft'), place)
    column = draw(now, warped)
    if paths > 1 and controls.temperature is not None:
      # Independent greedy drafts would all be the same.
      is_cold = controls.temperature[:, None] == 0.0
      column = jnp.where(is_cold, _best(logits, paths), column)
    return columns.tokens(column), warped, goes_on, finite

  # After a block that was accepted whole the draft has not consumed its own
  # last token. Feeding the last two tokens always, the first of which may
  # overwrite itself, makes that case no case. A row of one token feeds it and
  # a meaningless second, whose slot the next token overwrites.
  start = jnp.maximum(total - 2, 0)
  hidden, cache = draft.extend(
      params, draft.rollback(state, start), rows.window(tokens, start, 2)
  )
  newest = jnp.minimum(total, 2) - 1
  first = propose(0, rows.window(hidden, newest, 1))
  token, logits, goes_on, finite = first
  cache = draft.rollback(cache, total)
  parting = fork(total, decoding)

  def unfinished(carry):
    place, _, _, _, _, is_open, _, _ = carry
    if decoding.draft_stop is None:
      return place < size
    return (place < size) & jnp.any(is_open)

  def next_token(carry):
    place, cache, drafted, proposed, token, is_open, lengths, finite = carry
    hidden, cache = draft.extend(params, cache, token, parting)
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

  drafted = jnp.zeros((size, *shape), jnp.int32).at[0].set(token)
  proposed = None
  if not is_greedy:
    proposed = jnp.zeros((size, *logits.shape), logits.dtype).at[0].set(logits)
  carry = (
      jnp.int32(1), cache, drafted, proposed, token,
      goes_on & ~done[:, None], jnp.ones(shape, jnp.int32),
      jnp.broadcast_to(finite, shape),
  )  # fmt: skip
  with jax.named_scope('draft_loop'):  # what a plan looks for
    carry = jax.lax.while_loop(unfinished, next_token, carry)
  _, cache, drafted, proposed, _, _, lengths, finite = carry
  count = jnp.sum(lengths, axis=1)
  if decoding.draft_stop is None:
    lengths, count = None, jnp.full_like(total, size * paths)
  drafted, proposed = jax.tree.map(
      lambda array: jnp.swapaxes(array, 0, 1), (drafted, proposed)
  )  # [G, B, ...] -> [B, G, ...]
  if proposed is not None:
    # [B, G, K, V'] -> [B, G, K, V]; a token without a column was not proposed.
    proposed = columns.spread(proposed)
  finite = finite.all(axis=1)
  block = Block(drafted, proposed, lengths, finite, count)
  return cache, block if paths > 1 else _one_path(block)


def _one_path(block: Block) -> Block:
  """The block without the axis of paths."""
  lengths, logits = block.lengths, block.logits
  return block._replace(
      tokens=block.tokens[..., 0],
      logits=None if logits is None else logits[:, :, 0],
      lengths=None if lengths is None else lengths[:, 0],
  )


def _check_choice(tokens: int, paths: int) -> None:
  if tokens < paths:
    raise errors.UserError(
        f'num_drafts is {paths}, but the draft proposes from {tokens} tokens;'
        ' there are no more drafts that differ.'
    )


def _best(logits: jax.Array, paths: int) -> jax.Array:
  """int32[B, K]: the best column of each path, or the best where they part.

  Args:
    logits: float[B, K, V'], or float[B, 1, V'] before the paths part.
    paths: K.
  """
  if logits.shape[1] == paths:
    return rows.best(logits)
  return jax.lax.top_k(logits[:, 0], paths)[1].astype(jnp.int32)


def draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
  """int32[B, K] drawn from logits float32[B, K, V], each on its own."""
  paths = logits.shape[1]
  if paths == 1:
    return randomness.categorical(keys, logits[:, 0])[:, None]
  own = jax.vmap(lambda path: randomness.events(keys, path), out_axes=1)
  return jax.vmap(randomness.categorical, in_axes=1, out_axes=1)(
      own(jnp.arange(paths)), logits
  )


def _goes_on(logits: jax.Array, decoding: decoding_lib.Decoding) -> jax.Array:
  """bool[...]: the draft is sure enough to draft another token after this one.

  Args:
    logits: float[..., V] of the draft, not warped.
    decoding: with `draft_stop`.
  """
  if decoding.draft_stop is None:
    return jnp.ones(logits.shape[:-1], bool)
  name, threshold = decoding.draft_stop
  if name == 'confidence':
    return rows.confidence(logits) > threshold
  return rows.entropy(logits) <= threshold
