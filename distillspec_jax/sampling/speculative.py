"""Speculative generation: draft, verify, commit and rollback in one program.

One block of a row whose last committed token stands at position n - 1:

  draft    feeds what it has not consumed (one or two tokens), then its own
           proposals x_1 .. x_{G-1}, and so proposes x_1 .. x_G
  target   reads [last, x_1 .. x_G] at once and gives p for G + 1 positions
  verdict  how many are accepted, and the target's own token after them
  commit   the tokens are written at n; n grows by 1 .. G + 1
  rollback   both caches are cut back by setting their lengths

Several drafts stand side by side in the caches until the verdict; then the path
that it went along is kept, and all is as if it alone had been drafted.

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
from distillspec_jax.distributed import mesh
from distillspec_jax.models import transformer
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import multi_draft
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import rules
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import verification


@flax.struct.dataclass
class SpeculativeState:
  """State of the speculative loop. Rows of the batch advance at own speed.

  Attributes:
    step: int32[] blocks so far; numbers the random events.
    tokens: int32[B, P + L + G * K + 1] prefix and emitted tokens, 0 after
      `total`.
    origins: int8[B, P + L + G * K + 1].
    log_probs: float32[B, P + L + G * K + 1], or None.
    total: int32[B] tokens in `tokens`, the prefix included.
    done: bool[B] the row has ended, is full, or broke off.
    stopping: int32[B] state of the automaton of stop strings, or None.
    target: its cache; holds the first `total - 1` tokens.
    draft: its cache; holds the first `total - 2` tokens at least.
    statistics: counts so far.
    nonfinite_at: int32[B, 2] see `Samples`.
  """

  step: jax.Array
  tokens: jax.Array
  origins: jax.Array
  log_probs: jax.Array | None
  total: jax.Array
  done: jax.Array
  stopping: jax.Array | None
  target: transformer.DecodeState
  draft: transformer.DecodeState
  statistics: samples_lib.Statistics
  nonfinite_at: jax.Array


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
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
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
    controls: settings of rows.
  """

  is_tensor_parallel = target.is_tensor_parallel or draft.is_tensor_parallel
  return mesh.shard_over_batch(
      functools.partial(_generate, target, draft, decoding),
      whole=(
          target.for_decoding(target_params),
          draft.for_decoding(draft_params),
          controls.stop,
      ),
      rows=(inputs, input_segments, keys, controls.replace(stop=None)),
      axes=() if is_tensor_parallel else mesh.AXES,
  )


def _generate(target, draft, decoding, whole, rows_):
  """`generate`, of one device's rows."""
  target_params, draft_params, stop = whole
  *read, keys, controls = rows_
  controls = controls.replace(stop=stop)
  vocabulary = transformer.shared_vocabulary(target, draft)
  batch, size = keys.shape[0], decoding.block_length
  slack = decoding.max_new_tokens + size * decoding.num_drafts + 1
  encoded = transformer.shared_encoding(draft, target, target_params, *read)
  forced = (controls.prefix, controls.prefix_segments)
  begin = (*read, slack, *forced, encoded)
  target_state, prefix = target.prefill(target_params, *begin)
  draft_state, _ = draft.prefill(draft_params, *begin)
  tokens = jnp.pad(prefix.tokens, ((0, 0), (0, slack)))
  state = SpeculativeState(
      step=jnp.int32(0),
      tokens=tokens,
      origins=jnp.zeros(tokens.shape, jnp.int8),
      log_probs=jnp.zeros(tokens.shape) if decoding.log_probs else None,
      total=prefix.length,
      done=jnp.zeros(batch, bool),
      stopping=None if stop is None else jnp.full(batch, stop.start),
      target=target_state,
      draft=draft_state,
      statistics=samples_lib.Statistics.zeros(batch, size),
      nonfinite_at=jnp.full((batch, 2), -1),
  )

  def body(state: SpeculativeState) -> SpeculativeState:
    block_keys = randomness.events(keys, state.step)
    number = state.total - prefix.length
    draft_state, block = drafting.draft_block(
        draft, draft_params, state.draft, state.tokens, state.total, number,
        state.done, block_keys, decoding, controls, vocabulary,
    )  # fmt: skip
    last = rows.window(state.tokens, state.total - 1, 1)
    fork = drafting.fork(state.total, decoding)
    hidden, target_state = target.extend(
        target_params,
        target.rollback(state.target, state.total - 1),
        jnp.concatenate([last, block.tokens.reshape(batch, -1)], axis=1),
        fork,
    )
    own_logits = target.all_logits(target_params, hidden, vocabulary)
    places = number[:, None] + drafting.depths(decoding)[None]
    p_logits = controls.allow(own_logits, places, decoding)
    verdict = rules.verify(block_keys, block, p_logits, decoding, controls)
    if fork is not None:
      path = verdict.path
      target_state = target.keep(target_state, fork, path, size)
      draft_state = draft.keep(draft_state, fork, path, size - 1)
      block = block.along(path)
      own_logits = multi_draft.along(own_logits, path, fork.paths)
    state = state.replace(target=target_state, draft=draft_state)
    return commit(
        state, prefix.length, block, verdict, own_logits, decoding, controls
    )

  state = jax.lax.while_loop(lambda state: ~jnp.all(state.done), body, state)
  out = lambda array: rows.window(array, prefix.length, decoding.max_new_tokens)
  return samples_lib.Samples(
      tokens=out(state.tokens),
      lengths=state.total - prefix.length,
      origins=out(state.origins),
      statistics=state.statistics,
      log_probs=out(state.log_probs) if decoding.log_probs else None,
      nonfinite_at=state.nonfinite_at,
  )


def commit(
    state: SpeculativeState,
    prefix_length: jax.Array,
    block: drafting.Block,
    verdict: verification.Verdict,
    logits: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls,
) -> SpeculativeState:
  """Writes what the verdict lets through, up to the row's end or limit.

  Args:
    state: before the block.
    prefix_length: int32[B].
    block: what was drafted.
    verdict: on it.
    logits: float32[B, G+1, V] the target's own.
    decoding: settings.
    controls: settings of rows.
  """
  size = decoding.block_length
  place = jnp.arange(size + 1)[None]  # [1, G + 1]
  drafted = size if block.lengths is None else block.lengths[:, None]
  accepted = verdict.num_accepted[:, None]
  tokens = jnp.where(
      place < accepted,
      jnp.pad(block.tokens, ((0, 0), (0, 1))),
      verdict.next_token[:, None],
  )
  origins = jnp.where(
      place < accepted,
      samples_lib.Origin.ACCEPTED,
      jnp.where(
          accepted == drafted,
          samples_lib.Origin.BONUS,
          samples_lib.Origin.CORRECTED,
      ),
  )
  # A row ends at EOS, after a stop string, or where logits are no numbers.
  ends = controls_lib.ends(tokens, decoding)
  if controls.stop is not None:
    stopping = controls.stop.read(state.stopping, tokens)  # [B, G + 1]
    ends |= stopping >= controls.stop.found
  ends &= place <= accepted
  to_end = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), size) + 1
  room = prefix_length + controls.limit(decoding) - state.total
  count = jnp.minimum(jnp.minimum(verdict.num_accepted + 1, to_end), room)
  nonfinite_at = _nonfinite_at(
      state, prefix_length, block, verdict, tokens, logits
  )
  active = ~state.done & (nonfinite_at < 0).all(axis=1)
  count = jnp.where(active, count, 0)

  written = place < count[:, None]
  total = state.total + count
  ended = (ends & written).any(1)
  full = total == prefix_length + controls.limit(decoding)
  judged = written[:, :size] & (place[:, :size] < drafted)
  passed = judged & (place[:, :size] < accepted)
  last = jnp.maximum(count - 1, 0)
  old = state.statistics
  return state.replace(
      step=state.step + 1,
      tokens=_add(state, state.tokens, tokens, written),
      origins=_add(state, state.origins, origins, written),
      log_probs=_add(
          state, state.log_probs, rows.log_prob(logits, tokens), written
      )
      if decoding.log_probs
      else None,
      total=total,
      done=~active | ended | full,
      stopping=jnp.where(
          count > 0, verification.at(stopping, last), state.stopping
      )
      if controls.stop is not None
      else None,
      statistics=samples_lib.Statistics(
          blocks=old.blocks + active,
          drafted=old.drafted + active * block.count,
          accepted=old.accepted + jnp.sum(passed, axis=1, dtype=jnp.int32),
          emitted=old.emitted + count,
          reached_at=old.reached_at + judged,
          accepted_at=old.accepted_at + passed,
      ),
      nonfinite_at=nonfinite_at,
  )


def _add(state, array, new, written) -> jax.Array:
  new = jnp.where(written, new, jnp.zeros_like(new))
  return rows.write(array, new, state.total)


def _nonfinite_at(
    state, prefix_length, block, verdict, tokens, logits
) -> jax.Array:
  """int32[B, 2] of `Samples`, after this block.

  Of the target's logits all matter where the verdict adds a token of its own.
  Those before it let a token pass: by their ratio to the draft's, which no nan
  does, or because it is the largest, which a nan is, so that its own tells.
  """
  accepted = verdict.num_accepted
  at = verification.at(logits, accepted)  # [B, V]
  passed = jnp.isfinite(rows.pick(logits, tokens))  # [B, G + 1]
  passed |= jnp.arange(tokens.shape[1])[None] >= accepted[:, None]
  of_target = rows.is_finite(at) & passed.all(axis=1)
  is_fine = jnp.stack([of_target, block.finite], axis=1)
  now = (state.total - prefix_length)[:, None]
  is_new = ~is_fine & (state.nonfinite_at < 0) & ~state.done[:, None]
  return jnp.where(is_new, now, state.nonfinite_at)
