"""The verification rule that the settings name.

lossless   `verification` (token by token, greedy), `block_verification`,
           `multi_draft` (several drafts)
lossy      `lenient`, `typical`, `simulated`; see `lossy`

Each is a pure function of what was drafted, both models' logits and keys.
"""

from __future__ import annotations

import jax

from distillspec_jax.sampling import block_verification
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import lenient
from distillspec_jax.sampling import multi_draft
from distillspec_jax.sampling import simulated
from distillspec_jax.sampling import typical
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping


def verify(
    keys: jax.Array,
    block: drafting.Block,
    p_logits: jax.Array,
    decoding: decoding_lib.Decoding,
    controls: controls_lib.Controls,
) -> verification.Verdict:
  """The verdict on a drafted block.

  Args:
    keys: key[B] of this block.
    block: what was drafted.
    p_logits: float32[B, 1 + G * K, V] target logits, not warped.
    decoding: names the rule and the warping.
    controls: settings of rows.
  """
  rule = decoding.lenience
  if controls.is_greedy(decoding):
    judged = (block.tokens, p_logits)
    if decoding.num_drafts > 1:
      return multi_draft.greedy(*judged, block.lengths)
    match rule:
      case None:
        return verification.greedy(*judged, block.lengths)
      case typical.Typical():
        return typical.greedy(*judged, rule, block.lengths)
      case simulated.Simulated():
        return simulated.greedy(keys, *judged, rule, block.lengths)
      case lenient.Lenience():
        return lenient.greedy(*judged, rule, block.lengths)
  p_logits = warping.warp(p_logits, decoding, controls.temperature)
  judged = (keys, block.tokens, block.logits, p_logits)
  if decoding.num_drafts > 1:
    return multi_draft.paths(*judged, block.lengths)
  match rule:
    case typical.Typical():
      return typical.token(*judged, rule, block.lengths)
    case simulated.Simulated():
      return simulated.token(*judged, rule, block.lengths)
    case lenient.Lenience():
      return lenient.token(*judged, rule, block.lengths)
  if decoding.verification == 'block':
    return block_verification.block(*judged, block.lengths)
  return verification.token(*judged, block.lengths)
