"""Drafting: the draft proposes the next block, one step for each token.

A parallel draft does so in one step: after the text it reads masks, and each
predicts the token after its place, given the text and the masks before it.
Proposals are independent given the text, and so are their distributions.
An et al. 2025, PARD, https://arxiv.org/abs/2504.18583.

Multi-path drafts branch off at the first token and share a cache and each step.
Sampled, they are independent; greedy, they begin with the draft's K best tokens
and continue with the best token of each.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import path_slots
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import warping


class Block(NamedTuple):
  """What the draft proposes; the axis K is absent where there is one path.

  Attributes:
    tokens: int32[B, G, K].
    logits: float32[B, G, K, V] that they were sampled from; greedy: None.
    lengths: int32[B, K] in [1, G] how many count; None: all G.
    is_finite: bool[B] the draft's logits were finite.
    count: int32[B] tokens that count, over all paths.
  """

  tokens: jax.Array
  logits: jax.Array | None
  lengths: jax.Array | None
  is_finite: jax.Array
  count: jax.Array  # type: ignore[assignment]

  def along_path(self, path: jax.Array) -> Block:
    """What path int32[B] alone proposes, without its logits."""
    lengths = self.lengths
    return self._replace(
        tokens=rows.pick(self.tokens, path[:, None]),
        logits=None,
        lengths=None if lengths is None else rows.pick(lengths, path),
    )


class _Carry(NamedTuple):
  """State of the draft loop; arrays over G are filled up to `depth`."""

  depth: jax.Array  # int32[]
  state: model_lib.DecodeState
  drafted: jax.Array  # int32[G, B, K]
  proposed: jax.Array | None  # float32[G, B, K, V']
  token: jax.Array  # int32[B, K] the last ones
  is_open: jax.Array  # bool[B, K] the block is still growing
  lengths: jax.Array  # int32[B, K]
  is_finite: jax.Array  # bool[B, K]


class _Proposal(NamedTuple):
  token: jax.Array  # int32[B, K]
  logits: jax.Array | None  # float32[B, K, V'] warped; greedy: None
  continues: jax.Array  # bool[B, K]
  is_finite: jax.Array  # bool[B, 1 or K]


def slots_of_paths(
    total: jax.Array, drafting: decoding_lib.Drafting
) -> path_slots.PathSlots | None:
  """Where multi-path drafts branch off: after `total` int32[B] tokens."""
  if drafting.paths == 1:
    return None
  return path_slots.PathSlots(total, drafting.paths)


def depths(drafting: decoding_lib.Drafting) -> np.ndarray:
  """int32[1 + G * K]: how deep in the block each token is that is verified."""
  repeats = [1] + [drafting.paths] * drafting.length
  return np.repeat(np.arange(drafting.length + 1, dtype=np.int32), repeats)


def draft_block(
    draft: model_lib.Model,
    state: model_lib.DecodeState,
    tokens: jax.Array,
    total: jax.Array,
    position: jax.Array,
    done: jax.Array,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls,
    vocabulary_size: int,
) -> tuple[model_lib.DecodeState, Block]:
  """The draft's cache, and its proposals after the tokens so far.

  Args:
    draft: the model that proposes.
    state: its cache; holds at least the first `total - 2` tokens, of a parallel
      draft `total - G - 1`.
    tokens: int32[B, N] emitted tokens.
    total: int32[B] how many there are.
    position: int32[B] how many of them are new.
    done: bool[B] rows for which nothing needs to be drafted.
    keys: key[B] of this block.
    decoding: settings.
    controls: settings of single rows.
    vocabulary_size: tokens from here on do not exist.
  """

  def draft_rows(draft, batched):
    return _draft_block(draft, *batched, decoding, vocabulary_size)

  state_axes = draft.batch_axes()
  state, block = mesh.shard_over_batch(
      draft_rows,
      replicated=draft,
      batched=(tokens, state, total, position, done, keys, controls),
      axes=() if draft.network.is_tensor_parallel else mesh.AXES,
      batch_axes=(0, state_axes, 0, 0, 0, 0, 0),
      out_batch_axes=(state_axes, 0),
  )
  logits = block.logits
  if logits is not None:
    # A small draft is replicated, its target sharded over the vocabulary: move
    # the draft's logits to where the target's are.
    names = ('batch', *[None] * (logits.ndim - 2), 'vocab')
    logits = layouts.constrain(logits, names, layouts.SHARDED)
  return state, block._replace(logits=logits)


def _draft_block(
    draft, tokens, state, total, position, done, keys, controls, decoding,
    vocabulary_size,
):  # fmt: skip
  """`draft_block` for the rows of one device."""
  size, paths = decoding.drafting.length, decoding.drafting.paths
  adaptive = decoding.drafting.adaptive
  shape = (tokens.shape[0], paths)  # [B, K]
  is_greedy = controls.is_greedy(decoding)
  vocabulary = draft.trimmed_vocabulary(vocabulary_size)

  def logits_of(depth, hidden):
    """float32[B, N, V'] of hidden states at depths int32[] or int32[1, N]."""
    logits = vocabulary.trim(draft.unembed(hidden))
    return controls.forbid_early_eos(
        logits, position[:, None] + depth, decoding, vocabulary
    )

  def choose(depth, logits) -> _Proposal:
    """A token for each path, from logits float32[B, 1 or K, V'].

    There is one distribution before the paths branch off, then one for each.
    """
    _check_choice(logits.shape[-1], paths)
    is_finite = rows.is_finite(logits)
    continues = jnp.ones(shape, bool)
    if adaptive is not None:
      continues = jnp.broadcast_to(adaptive.continues(logits), shape)
    if is_greedy:
      token = vocabulary.to_tokens(_best(logits, paths))
      return _Proposal(token, None, continues, is_finite)
    warped = warping.warp(logits, decoding.sampling, controls.temperature)
    warped = jnp.broadcast_to(warped, (*shape, warped.shape[-1]))
    depth_keys = randomness.events(randomness.streams(keys, 'draft'), depth)
    index = sample_paths(depth_keys, warped)
    if paths > 1 and controls.temperature is not None:
      # Independent greedy drafts would all be the same.
      is_cold = controls.temperature[:, None] == 0.0
      index = jnp.where(is_cold, _best(logits, paths), index)
    return _Proposal(vocabulary.to_tokens(index), warped, continues, is_finite)

  def draft_in_parallel():
    hidden, after = _read_with_masks(draft, state, tokens, total, size)
    depth = jnp.arange(size, dtype=jnp.int32)
    logits = logits_of(depth[None], hidden)[:, :, None]  # [B, G, K = 1, V']
    new = jax.vmap(choose, in_axes=(0, 1), out_axes=1)(depth, logits)
    is_open = jnp.cumprod(new.continues[:, :-1], axis=1) > 0
    is_open &= ~done[:, None, None]
    counts = jnp.pad(
        is_open, ((0, 0), (1, 0), (0, 0)), constant_values=True
    )  # [B, G, K]
    lengths = jnp.sum(counts, axis=1, dtype=jnp.int32)
    is_finite = jnp.all(new.is_finite | ~counts, axis=1)
    return after, new.token, new.logits, lengths, is_finite

  def draft_in_sequence():
    # After a block that was accepted in full, the draft has not read its own
    # last token yet; otherwise it has. Always feeding the last two tokens makes
    # both one case: the first of them may overwrite itself in the cache with
    # the same values. A row of one token feeds it and a meaningless second one,
    # whose slot the next token overwrites.
    start = jnp.maximum(total - 2, 0)
    hidden, after = draft.extend(
        draft.rollback(state, start), rows.window(tokens, start, 2)
    )
    newest = jnp.minimum(total, 2) - 1
    first = choose(0, logits_of(0, rows.window(hidden, newest, 1)))
    branches = slots_of_paths(total, decoding.drafting)

    def unfinished(carry: _Carry) -> jax.Array:
      grows = carry.depth < size
      return grows if adaptive is None else grows & jnp.any(carry.is_open)

    def next_token(carry: _Carry) -> _Carry:
      state = carry.state.restored()
      hidden, state = draft.extend(state, carry.token, branches)
      new = choose(carry.depth, logits_of(carry.depth, hidden))
      return _Carry(
          depth=carry.depth + 1,
          state=state.carried(),
          drafted=carry.drafted.at[carry.depth].set(new.token),
          proposed=None
          if is_greedy
          else carry.proposed.at[carry.depth].set(new.logits),
          token=new.token,
          is_open=carry.is_open & new.continues,
          lengths=carry.lengths + carry.is_open,
          # Tokens after a block's end do not count, nor do their logits.
          is_finite=carry.is_finite & (new.is_finite | ~carry.is_open),
      )

    drafted = jnp.zeros((size, *shape), jnp.int32).at[0].set(first.token)
    proposed = None
    if not is_greedy:
      proposed = jnp.zeros((size, *first.logits.shape), first.logits.dtype)
      proposed = proposed.at[0].set(first.logits)
    carry = _Carry(
        depth=jnp.int32(1),
        state=draft.rollback(after, total).carried(),
        drafted=drafted,
        proposed=proposed,
        token=first.token,
        is_open=first.continues & ~done[:, None],
        lengths=jnp.ones(shape, jnp.int32),
        is_finite=jnp.broadcast_to(first.is_finite, shape),
    )
    with jax.named_scope('draft_loop'):  # by which planning finds the loop
      carry = jax.lax.while_loop(unfinished, next_token, carry)
    drafted, proposed = jax.tree.map(
        lambda array: jnp.swapaxes(array, 0, 1), (carry.drafted, carry.proposed)
    )  # [G, B, ...] -> [B, G, ...]
    after = carry.state.restored()
    return after, drafted, proposed, carry.lengths, carry.is_finite

  is_parallel = decoding.drafting.parallel
  state, drafted, proposed, lengths, is_finite = (
      draft_in_parallel() if is_parallel else draft_in_sequence()
  )
  if proposed is not None:
    proposed = vocabulary.expand(proposed)  # [B, G, K, V'] -> [B, G, K, V]
  count = jnp.sum(lengths, axis=1)
  if adaptive is None:
    lengths, count = None, jnp.full_like(total, size * paths)
  block = Block(drafted, proposed, lengths, is_finite.all(axis=1), count)
  return state, block if paths > 1 else _single_path(block)


def _read_with_masks(draft, state, tokens, total, size):
  """Hidden states float[B, G, D] that predict a block, and the draft's cache.

  The first is that of the last token, the others are of masks after it. The
  cache then holds `total` tokens: the masks are forgotten.
  """
  # The draft has read the tokens of the last block as masks, if at all. That
  # block added G + 1 of them at most, so that always feeding as many makes all
  # cases one: others overwrite themselves in the cache with the same values. A
  # row of fewer tokens starts at its first one and feeds more masks.
  start = jnp.maximum(total - (size + 1), 0)
  position = start[:, None] + jnp.arange(2 * size)[None]
  read = rows.window(tokens, start, 2 * size)
  depths = jnp.maximum(position - total[:, None] + 1, 0)
  read = jnp.where(depths > 0, rows.window(tokens, total - 1, 1), read)
  hidden, state = draft.extend(
      draft.rollback(state, start), read, depths=depths
  )
  return rows.window(hidden, total - 1 - start, size), draft.rollback(
      state, total
  )


def _single_path(block: Block) -> Block:
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
        f'paths is {paths}, but the draft chooses from {tokens} tokens; there'
        ' are no more paths that differ.'
    )


def _best(logits: jax.Array, paths: int) -> jax.Array:
  """int32[B, K]: the best index of each path, or the K best to branch off.

  Args:
    logits: float[B, K, V'], or float[B, 1, V'] before the paths branch off.
    paths: K.
  """
  if logits.shape[1] == paths:
    return rows.best(logits)
  return jax.lax.top_k(logits[:, 0], paths)[1].astype(jnp.int32)


def sample_paths(keys: jax.Array, logits: jax.Array) -> jax.Array:
  """int32[B, K] sampled from logits float32[B, K, V], each independently."""
  paths = logits.shape[1]
  if paths == 1:
    return randomness.categorical(keys, logits[:, 0])[:, None]
  path_keys = jax.vmap(lambda path: randomness.events(keys, path), out_axes=1)(
      jnp.arange(paths)
  )
  sample = jax.vmap(randomness.categorical, in_axes=1, out_axes=1)
  return sample(path_keys, logits)
