"""Training of parallel drafts: a block of predictions from one call.

A parallel draft reads masks after its prefix and predicts a token at each. It
learns that in the very pass that it learns next-token prediction in: sequences
are cut at random places, chains of masks follow there (`models.mask_chains`),
and each mask is trained towards the target's distribution at its position,
teacher-forced. Predictions far from the cut matter less, for they are of use
only where all before them are accepted, and only some chains reach that far.

An et al. 2025, PARD, https://arxiv.org/abs/2504.18583
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import mask_chains

_UNKNOWN = 2  # <unk> of T5's vocabularies
REACH = ('target', 'acceptance', 'none')

Means = dict[str, types.Mean]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
  """How a draft learns to propose a block in one call, besides the method.

  The loss is that of the method on the sequence itself, as without masks, plus
  `weight` times the sum over all cuts of a sequence and all masks after each of
  reach times divergence, estimated from the masks that are drawn.

  Attributes:
    block_length: tokens that the draft learns to propose in one call, G: the
      one after the prefix, and those at G - 1 masks.
    chains: cuts of each sequence, drawn anew in every step; each is followed by
      a chain of masks.
    keep: share of the chains with a mask of some depth that have one of the
      next depth, too; below 1 it saves time.
    min_keep: share of all chains that are of full length at least.
    reach: how likely a mask's prediction is needed, given the tokens between it
      and the cut: 'target', their probability under the target; 'acceptance',
      the chance that the draft's block is accepted up to there, the product of
      min(1, q/p); or 'none', 1. With cross_entropy p is 1 at the labels.
    min_reach: the reach is at least that.
    weight: of the masks' loss.
    mask_token: default: the model's own, or else 2, <unk> in T5's vocabularies.
  """

  block_length: int = 5
  chains: int = 8
  keep: float = 1.0
  min_keep: float = 0.2
  reach: str = 'target'
  min_reach: float = 0.05
  weight: float = 1.0
  mask_token: int | None = None

  def __post_init__(self):
    owner = 'Parallel'
    check.at_least(
        2, owner=owner, hint='one token needs no mask',
        max_value=check.MAX_TOKENS, block_length=self.block_length,
    )  # fmt: skip
    check.at_least(
        1, owner=owner, max_value=check.MAX_TOKENS, chains=self.chains
    )
    check.in_interval(
        '(0, 1]', owner=owner, keep=self.keep, min_keep=self.min_keep
    )
    check.in_interval('[0, 1]', owner=owner, min_reach=self.min_reach)
    check.in_interval('[0, inf)', owner=owner, weight=self.weight)
    check.one_of(REACH, owner=owner, reach=self.reach)
    if self.mask_token is not None:
      check.at_least(0, owner=owner, mask_token=self.mask_token)

  def configure(self, config: config_lib.T5Config) -> config_lib.T5Config:
    """The configuration with the mask token."""
    token = self.mask_token
    if token is None:
      token = _UNKNOWN if config.mask_token is None else config.mask_token
    return dataclasses.replace(config, mask_token=token)

  def sizes(self, label_length: int) -> tuple[int, ...]:
    """Of the G - 1 depths: how many chains of a sequence have such a mask.

    Raises:
      UserError: the block is longer than the labels.
    """
    if self.block_length > label_length:
      raise errors.UserError(
          f'Parallel.block_length is {self.block_length}; it must be at most'
          f' the label length, {label_length}.'
      )
    chains = min(self.chains, label_length - 1)
    shares = (
        max(self.keep**depth, self.min_keep)
        for depth in range(self.block_length - 1)
    )
    # Rounding would make 0.7 * 0.7 * 100 larger than 49.
    return tuple(math.ceil(chains * share - 1e-6) for share in shares)

  def draw(self, key: jax.Array, segments: jax.Array) -> jax.Array:
    """int32[B, C]: different places at which each row is cut, shuffled.

    Args:
      key: of this step.
      segments: int32[B, T] of the labels, not packed.
    """
    rows, length = segments.shape
    chains = self.sizes(length)[0]
    keys = randomness.row_keys(randomness.stream(key, 'masks'), rows)
    place = jnp.arange(length)[None]
    # After the last cut there is still a token to predict at a mask. Where a
    # row has fewer places than chains, the rest get places at its end, whose
    # masks stand beyond it and count nowhere.
    order = jnp.where(
        place < _cuts(segments)[:, None],
        randomness.uniform(keys, (length,)),
        1.0 + place,
    )
    return jnp.argsort(order, axis=1)[:, :chains].astype(jnp.int32)

  def loss(
      self,
      means: Means,
      of_masks: Means,
      chains: mask_chains.MaskChains,
      segments: jax.Array,
  ) -> Means:
    """'parallel_loss' and, where it is known, 'parallel_acceptance', by row.

    Both are means over the masks, each weighted by its reach and by the inverse
    of the chance that it was drawn: total and count estimate sums over all.

    Args:
      means: of the sequence's tokens, by position, float32[B, T].
      of_masks: likewise of the masks, float32[B, M].
      chains: the masks.
      segments: int32[B, T] of the labels.
    """
    reach = self._reach(means, of_masks, chains)
    cuts = _cuts(segments)[:, None].astype(jnp.float32)
    sizes = jnp.array(chains.sizes, jnp.float32)[chains.depths - 1]
    weights = reach * jnp.maximum(cuts / sizes[None], 1.0)
    weights = jax.lax.stop_gradient(weights * of_masks['loss'].count)
    names = {
        'parallel_loss': 'loss',
        'parallel_acceptance': 'expected_acceptance',
    }
    return {
        name: types.Mean(
            jnp.sum(weights * of_masks[of].total, axis=1),
            jnp.sum(weights, axis=1),
        )
        for name, of in names.items()
        if of in of_masks
    }

  def _reach(
      self, means: Means, of_masks: Means, chains: mask_chains.MaskChains
  ) -> jax.Array:
    """float32[B, M]: how likely all tokens before each mask are accepted."""
    at_cut = jnp.take_along_axis(self._accepted(means), chains.anchors, 1)
    at_masks, before = self._accepted(of_masks), at_cut
    reach, first = [], 0
    for size in chains.sizes:
      reach.append(before[:, :size])
      before = reach[-1] * at_masks[:, first : first + size]
      first += size
    return jnp.maximum(jnp.concatenate(reach, axis=1), self.min_reach)

  def _accepted(self, means: Means) -> jax.Array:
    """float32[B, N]: how likely each label is accepted, if it is reached."""
    q_nats, known = means['cross_entropy']
    if self.reach == 'none':
      return jnp.ones_like(q_nats)
    p_nats = 0.0
    if 'target_cross_entropy' in means:
      p_nats = means['target_cross_entropy'].total
    if self.reach == 'target':
      return jnp.exp(-p_nats) * jnp.ones_like(q_nats)
    # A label that a trimmed vocabulary lacks is never proposed.
    return jnp.minimum(1.0, jnp.exp(p_nats - q_nats)) * known


def _cuts(segments: jax.Array) -> jax.Array:
  """int32[B]: places at which a row can be cut and have a mask after it."""
  return jnp.maximum(jnp.sum(segments > 0, axis=1) - 1, 0)
