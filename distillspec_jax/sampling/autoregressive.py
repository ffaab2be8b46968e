"""Autoregressive generation: one token a call, one compiled program."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.models import transformer
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import warping


@functools.partial(jax.jit, static_argnames=('model', 'decoding', 'vocabulary'))
def generate(
    model: transformer.Transformer,
    params: Any,
    inputs: jax.Array,
    input_segments: jax.Array,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    vocabulary: int | None = None,
) -> samples_lib.Samples:
  """Rows sampled from the warped model, each until its own EOS.

  Args:
    model: whose tokens.
    params: its parameters.
    inputs: int32[B, S].
    input_segments: int32[B, S], 0 is padding.
    keys: key[B], one a row.
    decoding: block_length has no effect.
    vocabulary: logits from here on are padding; default: none are.
  """
  rows, length = inputs.shape[0], decoding.max_new_tokens
  state, prefix = model.begin(params, inputs, input_segments, length)
  last = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)

  def unfinished(carry):
    step, done, _, _, _ = carry
    return (step < length) & ~jnp.all(done)

  def body(carry):
    step, done, last, tokens, state = carry
    hidden, state = model.advance(params, state, last)
    logits = model.unembed(params, hidden)[:, 0, :vocabulary]
    if decoding.greedy:
      token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
      token = randomness.categorical(
          randomness.events(keys, step), warping.warp(logits, decoding)
      )
    token = jnp.where(done, 0, token)
    tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, step))
    done = done | (token == decoding.eos_id)
    return step + 1, done, token[:, None], tokens, state

  done = jnp.zeros(rows, bool)
  tokens = jnp.zeros((rows, length), jnp.int32)
  carry = (jnp.int32(0), done, last, tokens, state)
  steps, _, _, tokens, _ = jax.lax.while_loop(unfinished, body, carry)

  ended = tokens == decoding.eos_id
  lengths = jnp.where(ended.any(1), jnp.argmax(ended, axis=1) + 1, steps)
  lengths = lengths.astype(jnp.int32)
  real = jnp.arange(length)[None] < lengths[:, None]
  origins = jnp.where(real, samples_lib.Origin.TARGET, 0).astype(jnp.int8)
  zeros = jnp.zeros(rows, jnp.int32)
  places = jnp.zeros((rows, decoding.block_length), jnp.int32)
  return samples_lib.Samples(
      tokens=tokens,
      lengths=lengths,
      origins=origins,
      statistics=samples_lib.Statistics(
          lengths, zeros, zeros, lengths, places, places
      ),
  )
