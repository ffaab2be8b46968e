"""Several continuations of one text side by side in one cache.

After `start` tokens a text goes on as K paths. Their tokens take turns in the
slots from there on, first all that come first:

  slot       ... start-1 | start   start+1  start+2  start+3  start+4  ...
  path       (common)    | 0       1        2        0        1          K = 3
  position   ... start-1 | start   start    start    start+1  start+1

A token sees what is common and its own path, and relative positions go by the
place on the path, not by the slot; so every path is computed as if it were
alone, while all of them share one cache and one reading of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Fork(NamedTuple):
  """Where the paths of each row part, and how many they are."""

  start: jax.Array  # int32[B], the first slot that is not common
  paths: int  # K

  def positions(self, slots: jax.Array) -> jax.Array:
    """int32[B, N]: places in the text of the tokens in slots int32[B, N]."""
    start = self.start[:, None]
    return jnp.where(
        slots < start, slots, start + (slots - start) // self.paths
    )

  def visible(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """bool[B, N, L]: whether slot queries int32[B, N] sees keys int32[B, L]."""
    queries, keys = queries[:, :, None], keys[:, None, :]
    is_common = keys < self.start[:, None, None]
    is_own_path = (queries - keys) % self.paths == 0
    return (keys <= queries) & (is_common | is_own_path)

  def slots(self, path: jax.Array, size: int) -> jax.Array:
    """int32[B, size]: slots of the first tokens of path int32[B]."""
    turns = jnp.arange(size, dtype=jnp.int32)[None] * self.paths
    return (self.start + path)[:, None] + turns
