"""Warping: logits -> logits of the distribution that is sampled from.

Target and draft go through the same function. Losslessness is with respect to
the warped target, and acceptance is highest where both are warped alike.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows


def warp(
    logits: jax.Array,
    sampling: decoding_lib.Sampling,
    temperature: jax.Array | None = None,
) -> jax.Array:
  """Logits after temperature, then top-k, then top-p.

  Temperature 0 is the limit: all mass on the most likely token (the first of
  equals). Ties at the edge of top-k or top-p are all kept.

  Args:
    logits: float[..., V].
    sampling: temperature, top-k and top-p.
    temperature: float32[B] instead, one for each row, the first axis of the
      logits.

  Returns:
    float32[..., V], -inf where a token cannot be sampled.
  """
  logits = logits.astype(jnp.float32)
  if temperature is not None:
    temperature = jnp.expand_dims(temperature, range(1, logits.ndim))
    is_greedy = temperature == 0.0
    unscaled = dataclasses.replace(sampling, temperature=1.0)
    warped = warp(logits / jnp.where(is_greedy, 1.0, temperature), unscaled)
    return jnp.where(is_greedy, _only_best(logits), warped)
  if sampling.is_greedy:
    return _only_best(logits)
  logits = logits / sampling.temperature
  if 0 < sampling.top_k < logits.shape[-1]:
    edge = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
    logits = jnp.where(logits < edge, -jnp.inf, logits)
  if sampling.top_p < 1.0:
    logits = jnp.where(_in_top_p(logits, sampling.top_p), logits, -jnp.inf)
  return logits


def _in_top_p(logits: jax.Array, top_p: float) -> jax.Array:
  """bool[..., V]: the mass of more likely tokens is below top_p.

  So the token that crosses the line is in, and so are its equals. The smallest
  probability that is in is found by bisection over the bits of a float32, which
  are ordered as the numbers are: 31 sums, and no sort.
  """
  p = jax.nn.softmax(logits, axis=-1)

  def halve(_, bounds):
    low, high = bounds  # `high` is in, `low` is not
    middle = low + (high - low) // 2
    bound = jax.lax.bitcast_convert_type(middle, jnp.float32)
    above = jnp.sum(jnp.where(p > bound, p, 0.0), axis=-1, keepdims=True)
    is_in = above < top_p
    return jnp.where(is_in, low, middle), jnp.where(is_in, middle, high)

  top = jnp.max(p, axis=-1, keepdims=True)
  high = jax.lax.bitcast_convert_type(top, jnp.int32)
  low = jnp.zeros_like(high)  # zero probability is not in
  _, smallest = jax.lax.fori_loop(0, 31, halve, (low, high))
  return p >= jax.lax.bitcast_convert_type(smallest, jnp.float32)


def _only_best(logits: jax.Array) -> jax.Array:
  """The limit of temperature 0, float32[..., V]."""
  best = rows.best(logits)
  is_best = jax.nn.one_hot(best, logits.shape[-1], dtype=jnp.bool_)
  return jnp.where(is_best, 0.0, -jnp.inf)
