"""Reading and writing where every row of a batch is at its own place."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def window(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
  """array[b, start[b] : start[b] + size], [B, N, ...] -> [B, size, ...]."""

  def row(row, start):
    return jax.lax.dynamic_slice_in_dim(row, start, size)

  return jax.vmap(row)(array, start)


def write(array: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  """The array with new [B, N] at start[b] of each row."""

  def row(row, new, start):
    return jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=0)

  return jax.vmap(row)(array, new.astype(array.dtype), start)


def pick(array: jax.Array, index: jax.Array) -> jax.Array:
  """array[..., index[...]], [..., V] and int32[...] -> [...]; nan beyond V."""
  index = index[..., None]
  return jnp.take_along_axis(array, index, axis=-1, mode='fill')[..., 0]


def best(logits: jax.Array) -> jax.Array:
  """int32[...] the first of the largest logits float[..., V]; V if one is nan.

  Two plain reductions: compilers vectorise them, unlike that of `argmax`.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  size = logits.shape[-1]
  number = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.min(jnp.where(logits == largest, number, size), axis=-1)


def is_finite(logits: jax.Array) -> jax.Array:
  """Whether no logit is nan or +inf, and not all are -inf.

  bool[...] of float[..., V].
  """
  return jnp.isfinite(jnp.max(logits, axis=-1))


def confidence(logits: jax.Array) -> jax.Array:
  """The largest probability, float32[...] of logits float[..., V]."""
  return jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
  """-sum p log p in nats, float32[...] of logits float[..., V]."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  p = jnp.exp(log_p)
  # 0 log 0 is 0, whatever the logarithm.
  return -jnp.sum(p * jnp.where(p > 0.0, log_p, 0.0), axis=-1)


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """log softmax(logits)[token], float32[...] of float[..., V], int32[...]."""
  logits = logits.astype(jnp.float32)
  total = jax.scipy.special.logsumexp(logits, axis=-1)
  return pick(logits, tokens) - total
