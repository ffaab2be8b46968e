"""Warping: logits -> logits of the distribution that is sampled from.

Target and draft go through the same function. Losslessness is with respect to
the warped target, and acceptance is highest where both are warped alike.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distillspec_jax.sampling import decoding as decoding_lib


def warp(
    logits: jax.Array,
    decoding: decoding_lib.Decoding,
    temperature: jax.Array | None = None,
) -> jax.Array:
  """Logits after temperature, then top-k, then top-p.

  Temperature 0 is the limit: all mass on the most likely token (the first of
  equals). Ties at the edge of top-k are all kept.

  Args:
    logits: float[..., V].
    decoding: temperature, top_k and top_p are read.
    temperature: float32[B] of each row, the first axis of the logits, instead.

  Returns:
    float32[..., V], -inf where a token cannot be sampled.
  """
  logits = logits.astype(jnp.float32)
  if temperature is not None:
    temperature = jnp.expand_dims(temperature, range(1, logits.ndim))
    is_greedy = temperature == 0.0
    warm = dataclasses.replace(decoding, temperature=1.0)
    warped = warp(logits / jnp.where(is_greedy, 1.0, temperature), warm)
    return jnp.where(is_greedy, _only_the_best(logits), warped)
  if decoding.greedy:
    return _only_the_best(logits)
  logits = logits / decoding.temperature
  if 0 < decoding.top_k < logits.shape[-1]:
    edge = jax.lax.top_k(logits, decoding.top_k)[0][..., -1:]
    logits = jnp.where(logits < edge, -jnp.inf, logits)
  if decoding.top_p < 1.0:
    # A token stays if the mass of those before it is below top_p, so that the
    # token that crosses the line is in.
    order = jnp.argsort(logits, axis=-1, descending=True)
    ordered = jnp.take_along_axis(
        jax.nn.softmax(logits, axis=-1), order, axis=-1
    )
    before = jnp.cumsum(ordered, axis=-1) - ordered
    kept = jnp.put_along_axis(
        jnp.zeros(logits.shape, bool),
        order,
        before < decoding.top_p,
        axis=-1,
        inplace=False,
    )
    logits = jnp.where(kept, logits, -jnp.inf)
  return logits


def _only_the_best(logits: jax.Array) -> jax.Array:
  """The limit of temperature 0, float32[..., V]."""
  best = jnp.argmax(logits, axis=-1)
  is_best = jax.nn.one_hot(best, logits.shape[-1], dtype=jnp.bool_)
  return jnp.where(is_best, 0.0, -jnp.inf)
