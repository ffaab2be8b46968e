"""Adaptive draft length: the draft ends a block where it is unsure.

A rule looks at the draft's own logits and at nothing else, so that what is
emitted keeps its distribution. It saves draft steps where every row stops.
"""

from __future__ import annotations

import dataclasses

import jax

from distillspec_jax.core import check
from distillspec_jax.core import objects
from distillspec_jax.sampling import rows


class AdaptiveLength:
  """Base class; subclasses are frozen dataclasses."""

  def continues(self, logits: jax.Array) -> jax.Array:
    """bool[...]: another token follows the one drafted from these logits.

    Args:
      logits: float[..., V'] of the draft, not warped.
    """
    raise NotImplementedError

  def describe(self) -> str:
    """The rule's name in results, as in 'confidence(0.4)'."""
    return objects.describe(self)


@dataclasses.dataclass(frozen=True)
class Confidence(AdaptiveLength):
  """Stops after a token where no token had more than this probability."""

  threshold: float

  def __post_init__(self):
    check.in_interval('[0, 1]', owner='Confidence', threshold=self.threshold)

  def continues(self, logits: jax.Array) -> jax.Array:
    return rows.confidence(logits) > self.threshold


@dataclasses.dataclass(frozen=True)
class Entropy(AdaptiveLength):
  """Stops after a token where the entropy was above this many nats."""

  threshold: float

  def __post_init__(self):
    check.in_interval('[0, inf]', owner='Entropy', threshold=self.threshold)

  def continues(self, logits: jax.Array) -> jax.Array:
    return rows.entropy(logits) <= self.threshold


def parse(text: str) -> AdaptiveLength:
  """The rule of a text such as 'confidence(0.4)' or 'entropy(2)'.

  Raises:
    UserError: there is no such rule, or its threshold is out of range.
  """
  known = {'confidence': Confidence, 'entropy': Entropy}
  return objects.parse(text, known, 'adaptive draft length')
