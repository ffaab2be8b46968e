"""Several continuations (paths) of one text, interleaved in one cache.

After `start` tokens a text continues as K paths. Their tokens take turns in the
slots from there on, depth by depth:

  slot       ... start-1 | start   start+1  start+2  start+3  start+4  ...
  path       (common)    | 0       1        2        0        1          K = 3
  position   ... start-1 | start   start    start    start+1  start+1

A token attends to the common part and to its own path, and relative positions
follow the path, not the slot. So every path is computed as if it were alone,
while all of them share one cache and one pass over the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PathSlots(NamedTuple):
  """Where the paths of each row branch off, and how many there are."""

  start: jax.Array  # int32[B], the first slot that is not common
  paths: int  # K

  def positions(self, slots: jax.Array) -> jax.Array:
    """int32[B, N]: positions in the text of the tokens in slots int32[B, N]."""
    start = self.start[:, None]
    depth = (slots - start) // self.paths
    return jnp.where(slots < start, slots, start + depth)

  def visible(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """bool[B, N, L]: queries int32[B, N] may attend to keys int32[B, L]."""
    queries, keys = queries[:, :, None], keys[:, None, :]
    is_common = keys < self.start[:, None, None]
    # Slots of one path are a multiple of K apart.
    is_own_path = (queries - keys) % self.paths == 0
    return (keys <= queries) & (is_common | is_own_path)

  def slots(self, path: jax.Array, size: int) -> jax.Array:
    """int32[B, size]: slots of the first `size` tokens of path int32[B]."""
    depth = jnp.arange(size, dtype=jnp.int32)[None]
    return (self.start + path)[:, None] + depth * self.paths
