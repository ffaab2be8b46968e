"""Autoregressive generation: one token per call, one compiled program."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.distributed import mesh
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import stopping
from distillspec_jax.sampling import warping


class _Carry(NamedTuple):
  """State of the loop; see `Samples` and `SpeculativeState`."""

  step: jax.Array
  done: jax.Array
  last: jax.Array  # int32[B, 1]
  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array | None
  stop_state: jax.Array | None
  nonfinite_at: jax.Array  # int32[B]
  state: model_lib.DecodeState


@functools.partial(jax.jit, static_argnames=('decoding', 'vocabulary_size'))
def generate(
    model: model_lib.Model,
    prompt: types.Prompt,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    *,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
    stop: stopping.Automaton | None = None,
    vocabulary_size: int | None = None,
) -> samples_lib.Samples:
  """Sequences sampled from the warped model, each until its own end.

  Args:
    model: whose tokens.
    prompt: what it reads.
    keys: key[B], one for each row.
    decoding: settings; those of drafting have no effect.
    controls: settings of single rows.
    stop: ends sequences at stop strings.
    vocabulary_size: tokens from here on are never emitted; default: all exist.
  """

  def generate_rows(replicated, batched):
    return _generate(*replicated, *batched, decoding, vocabulary_size)

  return mesh.shard_over_batch(
      generate_rows,
      replicated=(model.for_decoding(), stop),
      batched=(prompt, keys, controls),
      # Each device loops over its own rows, unless devices share the model.
      axes=() if model.network.is_tensor_parallel else mesh.AXES,
  )


def _generate(model, stop, prompt, keys, controls, decoding, vocabulary_size):
  """`generate` for the rows of one device."""
  batch, length = keys.shape[0], decoding.output_length
  state, context = model.prefill(prompt, length, controls.prefix)
  in_step = context.tokens.shape[1] == 1  # all begin with the start token
  is_greedy = controls.is_greedy(decoding)
  vocabulary = model.trimmed_vocabulary(vocabulary_size)
  limit = jnp.broadcast_to(controls.limit(decoding), (batch,))

  def unfinished(carry: _Carry) -> jax.Array:
    return ~jnp.all(carry.done)

  def next_token(carry: _Carry) -> _Carry:
    slot = carry.step if in_step else None
    state = carry.state.restored()
    hidden, state = model.extend(state, carry.last, slot=slot)
    own_logits = vocabulary.trim(model.unembed(hidden))
    position = jnp.broadcast_to(carry.step, (batch, 1))
    logits = controls.forbid_early_eos(
        own_logits, position, decoding, vocabulary
    )[:, 0]
    if is_greedy:
      index = rows.best(logits)
    else:
      index = randomness.categorical(
          randomness.events(keys, carry.step),
          warping.warp(logits, decoding.sampling, controls.temperature),
      )
    is_finite = rows.is_finite(logits)
    active = ~carry.done & is_finite
    token = jnp.where(active, vocabulary.to_tokens(index), 0)
    ended = controls_lib.is_end(token, decoding)
    stop_state = carry.stop_state
    if stop is not None:
      stop_state = stop.read(stop_state, token[:, None])[:, 0]
      ended |= stop.is_complete(stop_state)
    log_probs = carry.log_probs
    if decoding.log_probs:
      new = rows.log_prob(own_logits[:, 0], index)
      log_probs = log_probs.at[:, carry.step].set(jnp.where(active, new, 0.0))
    lengths = carry.lengths + active
    return _Carry(
        step=carry.step + 1,
        done=~active | ended | (lengths >= limit),
        last=token[:, None],
        tokens=carry.tokens.at[:, carry.step].set(token),
        lengths=lengths,
        log_probs=log_probs,
        stop_state=stop_state,
        nonfinite_at=jnp.where(
            ~carry.done & ~is_finite, carry.step, carry.nonfinite_at
        ),
        state=state.carried(),
    )

  out = jax.lax.while_loop(
      unfinished,
      next_token,
      _Carry(
          step=jnp.int32(0),
          done=jnp.zeros(batch, bool),
          last=rows.window(context.tokens, context.length - 1, 1),
          tokens=jnp.zeros((batch, length), jnp.int32),
          lengths=jnp.zeros(batch, jnp.int32),
          log_probs=jnp.zeros((batch, length)) if decoding.log_probs else None,
          stop_state=stopping.start(stop, controls.stop_state, batch),
          nonfinite_at=jnp.full(batch, -1),
          state=state.carried(),
      ),
  )
  is_real = jnp.arange(length)[None] < out.lengths[:, None]
  origins = jnp.where(is_real, samples_lib.Origin.TARGET, 0).astype(jnp.int8)
  no_drafts = samples_lib.Statistics.zeros(batch, 0)
  return samples_lib.Samples(
      tokens=out.tokens,
      lengths=out.lengths,
      origins=origins,
      statistics=no_drafts.replace(blocks=out.lengths, emitted=out.lengths),
      log_probs=out.log_probs,
      nonfinite_at=jnp.stack([out.nonfinite_at, jnp.full(batch, -1)], axis=1),
  )
