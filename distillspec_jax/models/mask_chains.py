"""Chains of masks after several prefixes of one text, for teacher forcing.

A parallel draft reads masks after its prefix and predicts one token at each,
all in one call. Here a text is cut after several of its tokens (anchors), and
one pass over text and masks gives what such calls would give:

  token       0  a  b  c  d | m    m    m    m   anchors 1 and 3, two masks each
  position    0  1  2  3  4 | 2    4    3    5
  sees text                 | 0-1  0-3  0-1  0-3   and its chain's earlier masks

The text itself sees no mask. Chains may be of several lengths: the first
sizes[0] of them have a first mask, the first sizes[1] a second, and so on.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MaskChains(NamedTuple):
  """Where the chains of each row start, and how long they are.

  Masks come depth by depth: first the first masks of all chains.
  """

  anchors: jax.Array  # int32[B, C], the last token of the text that each sees
  sizes: tuple[int, ...]  # of G - 1 depths: chains with a mask; not ascending

  @property
  def chains(self) -> np.ndarray:
    """int[M]: the chain of each mask."""
    return np.concatenate([np.arange(size) for size in self.sizes])

  @property
  def depths(self) -> np.ndarray:
    """int[M]: the place of each mask in its chain, from 1 on."""
    return np.repeat(np.arange(len(self.sizes)) + 1, self.sizes)

  def positions(self) -> jax.Array:
    """int32[B, M]: positions in the text at which the masks stand."""
    return self.anchors[:, self.chains] + self.depths[None]

  def visible(self, length: int) -> jax.Array:
    """bool[B, M, T + M]: what the masks may attend to, text and masks."""
    text = jnp.arange(length)[None, None] <= self.anchors[:, self.chains, None]
    chains, depths = self.chains, self.depths
    own = chains[:, None] == chains
    masks = own & (depths <= depths[:, None])  # [M, M]
    masks = jnp.broadcast_to(masks, (*text.shape[:2], len(chains)))
    return jnp.concatenate([text, masks], axis=2)

  def at_anchors(self, array: jax.Array) -> jax.Array:
    """[B, M]: what [B, T] holds at the anchor of each mask."""
    return jnp.take_along_axis(array, self.anchors, 1)[:, self.chains]

  def at_masks(self, array: jax.Array) -> jax.Array:
    """[B, M, ...]: what [B, T, ...] holds where the masks stand; 0 beyond T."""
    take = lambda row, at: row.at[at].get(mode='fill', fill_value=0)
    return jax.vmap(take)(array, self.positions())
