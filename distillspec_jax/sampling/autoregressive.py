"""Autoregressive generation: one token a call, one compiled program."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.distributed import mesh
from distillspec_jax.models import transformer
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import warping


class _Carry(NamedTuple):
  """State of the loop; see `Samples` and `SpeculativeState`."""

  step: jax.Array
  done: jax.Array
  last: jax.Array  # int32[B, 1]
  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array | None
  stopping: jax.Array | None
  nonfinite_at: jax.Array  # int32[B]
  state: transformer.DecodeState


@functools.partial(jax.jit, static_argnames=('model', 'decoding', 'vocabulary'))
def generate(
    model: transformer.Transformer,
    params: Any,
    inputs: jax.Array,
    input_segments: jax.Array,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    vocabulary: int | None = None,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
    encoded: jax.Array | None = None,
) -> samples_lib.Samples:
  """Rows sampled from the warped model, each until its own end.

  Args:
    model: whose tokens.
    params: its parameters.
    inputs: int32[B, S].
    input_segments: int32[B, S], 0 is padding.
    keys: key[B], one a row.
    decoding: what it says of drafts has no effect.
    vocabulary: logits from here on are padding; default: none are.
    controls: settings of rows.
    encoded: float[B, S, E] the encoder's output, see `Transformer.hidden`.
  """

  return mesh.shard_over_batch(
      functools.partial(_generate, model, decoding, vocabulary),
      whole=(model.for_decoding(params), controls.stop),
      rows=(
          inputs, input_segments, keys, controls.replace(stop=None), encoded
      ),
      axes=() if model.is_tensor_parallel else mesh.AXES,
  )  # fmt: skip


def _generate(model, decoding, vocabulary, whole, rows_):
  """`generate`, of one device's rows."""
  params, stop = whole
  inputs, input_segments, keys, controls, encoded = rows_
  controls = controls.replace(stop=stop)
  batch, length = inputs.shape[0], decoding.max_new_tokens
  state, prefix = model.prefill(
      params,
      inputs,
      input_segments,
      length,
      controls.prefix,
      controls.prefix_segments,
      encoded,
  )
  is_greedy = controls.is_greedy(decoding)
  columns = model.columns(vocabulary)
  limit = jnp.broadcast_to(controls.limit(decoding), (batch,))

  def unfinished(carry):
    return ~jnp.all(carry.done)

  def body(carry):
    hidden, state = model.extend(params, carry.state, carry.last)
    own_logits = columns.cut(model.unembed(params, hidden))
    number = jnp.broadcast_to(carry.step, (batch, 1))
    logits = controls.allow(own_logits, number, decoding, columns)[:, 0]
    is_fine = rows.is_finite(logits)
    if is_greedy:
      column = rows.best(logits)
    else:
      column = randomness.categorical(
          randomness.events(keys, carry.step),
          warping.warp(logits, decoding, controls.temperature),
      )
    now_broken = ~carry.done & ~is_fine
    active = ~carry.done & is_fine
    token = jnp.where(active, columns.tokens(column), 0)
    ended = controls_lib.ends(token, decoding)
    stopping = carry.stopping
    if controls.stop is not None:
      stopping = controls.stop.read(stopping, token[:, None])[:, 0]
      ended |= stopping >= controls.stop.found
    log_probs = carry.log_probs
    if decoding.log_probs:
      new = rows.log_prob(own_logits[:, 0], column)
      log_probs = log_probs.at[:, carry.step].set(jnp.where(active, new, 0.0))
    lengths = carry.lengths + active
    return _Carry(
        step=carry.step + 1,
        done=~active | ended | (lengths >= limit),
        last=token[:, None],
        tokens=carry.tokens.at[:, carry.step].set(token),
        lengths=lengths,
        log_probs=log_probs,
        stopping=stopping,
        nonfinite_at=jnp.where(now_broken, carry.step, carry.nonfinite_at),
        state=state,
    )

  out = jax.lax.while_loop(
      unfinished,
      body,
      _Carry(
          step=jnp.int32(0),
          done=jnp.zeros(batch, bool),
          last=rows.window(prefix.tokens, prefix.length - 1, 1),
          tokens=jnp.zeros((batch, length), jnp.int32),
          lengths=jnp.zeros(batch, jnp.int32),
          log_probs=jnp.zeros((batch, length)) if decoding.log_probs else None,
          stopping=None if stop is None else jnp.full(batch, stop.start),
          nonfinite_at=jnp.full(batch, -1),
          state=state,
      ),
  )
  real = jnp.arange(length)[None] < out.lengths[:, None]
  origins = jnp.where(real, samples_lib.Origin.TARGET, 0).astype(jnp.int8)
  zeros = jnp.zeros(batch, jnp.int32)
  places = jnp.zeros((batch, decoding.block_length), jnp.int32)
  return samples_lib.Samples(
      tokens=out.tokens,
      lengths=out.lengths,
      origins=origins,
      statistics=samples_lib.Statistics(
          out.lengths, zeros, zeros, out.lengths, places, places
      ),
      log_probs=out.log_probs,
      nonfinite_at=jnp.stack([out.nonfinite_at, jnp.full(batch, -1)], axis=1),
  )
