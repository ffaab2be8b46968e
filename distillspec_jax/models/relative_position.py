"""Relative position bias: distance -> bucket -> one number a head.

Raffel et al. 2019, section 2.1. Near distances have a bucket each, far ones
share logarithmically wider buckets, and all beyond `max_distance` share one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bucket(
    distance: np.ndarray, bidirectional: bool, buckets: int, max_distance: int
) -> np.ndarray:
  """int32[...] bucket of key position minus query position.

  Args:
    distance: int[...], negative where the key lies before the query.
    bidirectional: half of the buckets are for keys after the query; otherwise
      such keys share bucket 0 with distance 0.
    buckets: number of buckets.
    max_distance: from here on all distances share the last bucket.
  """
  offset = np.zeros_like(distance)
  if bidirectional:
    buckets //= 2
    offset = np.where(distance > 0, buckets, 0)
    steps = np.abs(distance)
  else:
    steps = np.maximum(-distance, 0)
  exact = buckets // 2
  # In float32, as published: one float64 rounding moves a bucket's edge.
  ratio = np.log(np.maximum(steps, 1).astype(np.float32) / exact)
  ratio = ratio / np.log(np.float32(max_distance) / exact)
  far = exact + (ratio * (buckets - exact)).astype(np.int32)
  far = np.minimum(far, buckets - 1)
  return (offset + np.where(steps < exact, steps, far)).astype(np.int32)


def square(
    queries: int,
    keys: int,
    bidirectional: bool,
    buckets: int,
    max_distance: int,
) -> np.ndarray:
  """int32[1, Q, K] buckets of a whole sequence; arguments as in `bucket`."""
  distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
  return bucket(distance, bidirectional, buckets, max_distance)[None]


def from_positions(
    query_positions: jax.Array,
    key_positions: jax.Array,
    buckets: int,
    max_distance: int,
) -> jax.Array:
  """int32[B, N, L] causal buckets where every row is at its own position.

  Args:
    query_positions: int32[B, N].
    key_positions: int32[B or 1, L], of the slots of the cache, below L.
    buckets: see `bucket`.
    max_distance: see `bucket`.
  """
  keys = key_positions.shape[1]
  by_distance = bucket(-np.arange(keys), False, buckets, max_distance)
  distance = query_positions[:, :, None] - key_positions[:, None]  # [B, N, L]
  return jnp.asarray(by_distance)[jnp.clip(distance, 0, keys - 1)]


def bias(embedding: jax.Array, buckets: np.ndarray | jax.Array) -> jax.Array:
  """float[B, H, Q, K] of embedding [H, buckets] and buckets int32[B, Q, K]."""
  return jnp.swapaxes(embedding[:, buckets], 0, 1)  # [H, B, ...] -> [B, H, ...]
