"""Speculative generation: draft, verify, commit and roll back in one program.

One block of a sequence whose last emitted token is at position n - 1:

  draft      reads what it has not read yet (one or two tokens), then its own
             proposals x_1 .. x_{G-1}, and so proposes x_1 .. x_G; a parallel
             draft reads masks in their place, all in one call
  target     reads [last, x_1 .. x_G] at once and gives p for G + 1 positions
  verify     how many are accepted, and the target's own token after them
  commit     the tokens are written at n; n grows by 1 .. G + 1
  roll back  both caches are cut back by setting their lengths

Multi-path drafts lie side by side in the caches until the verdict; then the
accepted path is kept, and all is as if it alone had been drafted.

Every sequence is at its own n. The loop is a `while_loop` on the device;
nothing goes to the host before it ends.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.distributed import mesh
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import stopping
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping
from distillspec_jax.sampling.verification import multi_path
from distillspec_jax.sampling.verification import verifier


class SpeculativeState(flax.struct.PyTreeNode):
  """State of the speculative loop. Rows advance at their own speed.

  Attributes:
    step: int32[] blocks so far; numbers the random events.
    tokens: int32[B, P + L + G * K + 1] context and emitted tokens, 0 after
      `total`.
    origins: int8[B, P + L + G * K + 1].
    log_probs: float32[B, P + L + G * K + 1], or None.
    total: int32[B] tokens in `tokens`, the context included.
    done: bool[B] the sequence has ended, is full, or met non-finite logits.
    stop_state: int32[B] state of the automaton of stop strings, or None.
    target: its cache; holds the first `total - 1` tokens.
    draft: its cache; holds at least the first `total - 2` tokens, of a parallel
      draft `total - G - 1`.
    statistics: counts so far.
    nonfinite_at: int32[B, 2] see `Samples`.
  """

  step: jax.Array
  tokens: jax.Array
  origins: jax.Array
  log_probs: jax.Array | None
  total: jax.Array
  done: jax.Array
  stop_state: jax.Array | None
  target: model_lib.DecodeState
  draft: model_lib.DecodeState
  statistics: samples_lib.Statistics
  nonfinite_at: jax.Array


@functools.partial(jax.jit, static_argnames='decoding')
def generate(
    target: model_lib.Model,
    draft: model_lib.Model,
    prompt: types.Prompt,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    *,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
    stop: stopping.Automaton | None = None,
) -> samples_lib.Samples:
  """Sequences with the target's distribution, proposed by the draft.

  Greedy, they are the tokens of the target's own greedy decoding. A lossy
  verifier gives this up.

  Args:
    target: the model that decides.
    draft: the model that proposes; it reads the same prompt.
    prompt: what both read.
    keys: key[B], one for each row.
    decoding: settings, the same for both models.
    controls: settings of single rows.
    stop: ends sequences at stop strings.

  Raises:
    UserError: a block is longer than the output may be, or parallel drafting
      with a draft that has no mask token.
  """
  decoding.check_speculative(draft.config)

  def generate_rows(replicated, batched):
    return _generate(*replicated, *batched, decoding)

  # Each device loops over its own rows, unless devices share a model.
  is_shared = any(m.network.is_tensor_parallel for m in (target, draft))
  return mesh.shard_over_batch(
      generate_rows,
      replicated=(target.for_decoding(), draft.for_decoding(), stop),
      batched=(prompt, keys, controls),
      axes=() if is_shared else mesh.AXES,
  )


def _generate(target, draft, stop, prompt, keys, controls, decoding):
  """`generate` for the rows of one device."""
  vocabulary_size = model_lib.common_vocabulary(target, draft)
  batch, size = keys.shape[0], decoding.drafting.length
  # A block is written in full before what exceeds the limit is dropped.
  slots = decoding.output_length + size * decoding.drafting.paths + 1
  prompt = model_lib.with_shared_encoding(prompt, target, draft)
  target_state, context = target.prefill(prompt, slots, controls.prefix)
  draft_state, _ = draft.prefill(prompt, slots, controls.prefix)
  tokens = jnp.pad(context.tokens, ((0, 0), (0, slots)))
  state = SpeculativeState(
      step=jnp.int32(0),
      tokens=tokens,
      origins=jnp.zeros(tokens.shape, jnp.int8),
      log_probs=jnp.zeros(tokens.shape) if decoding.log_probs else None,
      total=context.length,
      done=jnp.zeros(batch, bool),
      stop_state=stopping.start(stop, controls.stop_state, batch),
      target=target_state.carried(),
      draft=draft_state.carried(),
      statistics=samples_lib.Statistics.zeros(batch, size),
      nonfinite_at=jnp.full((batch, 2), -1),
  )

  def next_block(state: SpeculativeState) -> SpeculativeState:
    block_keys = randomness.events(keys, state.step)
    position = state.total - context.length
    draft_state, block = drafting.draft_block(
        draft, state.draft.restored(), state.tokens, state.total, position,
        state.done, block_keys, decoding, controls, vocabulary_size,
    )  # fmt: skip
    last = rows.window(state.tokens, state.total - 1, 1)
    branches = drafting.slots_of_paths(state.total, decoding.drafting)
    hidden, target_state = target.extend(
        target.rollback(state.target.restored(), state.total - 1),
        jnp.concatenate([last, block.tokens.reshape(batch, -1)], axis=1),
        branches,
    )
    own_logits = target.all_logits(hidden, vocabulary_size)
    depth = drafting.depths(decoding.drafting)[None]
    p_logits = controls.forbid_early_eos(
        own_logits, position[:, None] + depth, decoding
    )
    verdict = verify(block_keys, block, p_logits, decoding, controls)
    if branches is not None:
      # From here on it is as if the verdict's path alone had been drafted.
      path = verdict.path
      target_state = target.keep_path(target_state, branches, path, size)
      draft_state = draft.keep_path(draft_state, branches, path, size - 1)
      block = block.along_path(path)
      own_logits = multi_path.along_path(own_logits, path, branches.paths)
    state = state.replace(
        target=target_state.carried(), draft=draft_state.carried()
    )
    return commit(
        state, context.length, block, verdict, own_logits, decoding, controls,
        stop,
    )  # fmt: skip

  state = jax.lax.while_loop(
      lambda state: ~jnp.all(state.done), next_block, state
  )
  new = lambda array: rows.window(array, context.length, decoding.output_length)
  return samples_lib.Samples(
      tokens=new(state.tokens),
      lengths=state.total - context.length,
      origins=new(state.origins),
      statistics=state.statistics,
      log_probs=new(state.log_probs) if decoding.log_probs else None,
      nonfinite_at=state.nonfinite_at,
  )


def verify(
    keys: jax.Array,
    block: drafting.Block,
    p_logits: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
) -> verification.Verdict:
  """The verdict of the decoding's verifier on a drafted block.

  Args:
    keys: key[B] of this block.
    block: what was drafted.
    p_logits: float32[B, 1 + G * K, V] target logits, not warped.
    decoding: names the verifier and the warping.
    controls: settings of single rows.
  """
  if controls.is_greedy(decoding):
    return decoding.verifier.greedy(keys, block.tokens, p_logits, block.lengths)
  p_logits = warping.warp(p_logits, decoding.sampling, controls.temperature)
  return decoding.verifier.sampled(
      keys, block.tokens, block.logits, p_logits, block.lengths
  )


def commit(
    state: SpeculativeState,
    context_length: jax.Array,
    block: drafting.Block,
    verdict: verification.Verdict,
    logits: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls,
    stop: stopping.Automaton | None = None,
) -> SpeculativeState:
  """Writes what the verdict lets through, up to the sequence's end or limit.

  Args:
    state: before the block.
    context_length: int32[B].
    block: what was drafted, a single path.
    verdict: on it.
    logits: float32[B, G+1, V] the target's own.
    decoding: settings.
    controls: settings of single rows.
    stop: ends sequences at stop strings.
  """
  size = decoding.drafting.length
  index = jnp.arange(size + 1)[None]  # [1, G + 1] within the block
  drafted = size if block.lengths is None else block.lengths[:, None]
  accepted = verdict.num_accepted[:, None]
  tokens = jnp.where(
      index < accepted,
      jnp.pad(block.tokens, ((0, 0), (0, 1))),
      verdict.next_token[:, None],
  )
  origins = jnp.where(
      index < accepted,
      samples_lib.Origin.ACCEPTED,
      jnp.where(
          accepted == drafted,
          samples_lib.Origin.BONUS,
          samples_lib.Origin.CORRECTED,
      ),
  )
  # A sequence ends at EOS or with a stop string. Tokens after its end were
  # drafted and verified in vain, and are dropped here.
  ends = controls_lib.is_end(tokens, decoding)
  if stop is not None:
    stop_state = stop.read(state.stop_state, tokens)  # [B, G + 1]
    ends |= stop.is_complete(stop_state)
  ends &= index <= accepted
  to_end = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), size) + 1
  limit = context_length + controls.limit(decoding)
  count = jnp.minimum(verdict.num_accepted + 1, to_end)
  count = jnp.minimum(count, limit - state.total)
  nonfinite_at = _nonfinite_at(
      state, context_length, block, verdict, tokens, logits
  )
  active = ~state.done & (nonfinite_at < 0).all(axis=1)
  count = jnp.where(active, count, 0)

  is_written = index < count[:, None]
  total = state.total + count
  has_ended = (ends & is_written).any(1)
  # The bonus token is written without having been judged.
  is_judged = is_written[:, :size] & (index[:, :size] < drafted)
  is_accepted = is_judged & (index[:, :size] < accepted)
  old = state.statistics
  if decoding.log_probs:
    log_probs = rows.log_prob(logits, tokens)
    log_probs = _append(state, state.log_probs, log_probs, is_written)
    state = state.replace(log_probs=log_probs)
  if stop is not None:
    last = verifier.at(stop_state, jnp.maximum(count - 1, 0))
    stop_state = jnp.where(count > 0, last, state.stop_state)
    state = state.replace(stop_state=stop_state)
  return state.replace(
      step=state.step + 1,
      tokens=_append(state, state.tokens, tokens, is_written),
      origins=_append(state, state.origins, origins, is_written),
      total=total,
      done=~active | has_ended | (total == limit),
      statistics=samples_lib.Statistics(
          blocks=old.blocks + active,
          drafted=old.drafted + active * block.count,
          accepted=old.accepted + jnp.sum(is_accepted, axis=1, dtype=jnp.int32),
          emitted=old.emitted + count,
          reached_at=old.reached_at + is_judged,
          accepted_at=old.accepted_at + is_accepted,
      ),
      nonfinite_at=nonfinite_at,
  )


def _append(state, array, new, is_written) -> jax.Array:
  new = jnp.where(is_written, new, jnp.zeros_like(new))
  return rows.write(array, new, state.total)


def _nonfinite_at(
    state, context_length, block, verdict, tokens, logits
) -> jax.Array:
  """int32[B, 2] of `Samples`, after this block.

  Of the target's logits, all matter at the position where the verdict adds a
  token of its own. At the positions before it, only the logit of the accepted
  token does: it let the token pass, by its ratio to the draft's, which no nan
  does, or by being the largest, which a nan may be.
  """
  accepted = verdict.num_accepted
  logits_at = verifier.at(logits, accepted)  # [B, V]
  is_finite = jnp.isfinite(rows.pick(logits, tokens))  # [B, G + 1]
  is_finite |= jnp.arange(tokens.shape[1])[None] >= accepted[:, None]
  target_is_finite = rows.is_finite(logits_at) & is_finite.all(axis=1)
  is_finite = jnp.stack([target_is_finite, block.is_finite], axis=1)
  position = (state.total - context_length)[:, None]
  is_new = ~is_finite & (state.nonfinite_at < 0) & ~state.done[:, None]
  return jnp.where(is_new, position, state.nonfinite_at)
