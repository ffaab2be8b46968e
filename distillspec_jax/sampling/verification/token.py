"""Token verification: each drafted token by itself, exactly.

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from distillspec_jax.core import shapes
from distillspec_jax.sampling import rows
from distillspec_jax.sampling.verification import multi_path
from distillspec_jax.sampling.verification import verifier


@dataclasses.dataclass(frozen=True)
class Token(verifier.Verifier):
  """Accepts a prefix of the block and samples the token after it.

  A drafted token x passes with probability min(1, p(x) / q(x)); what is emitted
  has exactly the target's distribution, whatever the draft. Example, G = 3,
  second token rejected:

    drafted = [a, b, c]   passes = [1, 0, 1]   emitted = [a, x]
    where x ~ max(p - q, 0) at position 1, normalised.

  Multi-path drafts are judged by `multi_path`, which is this rule where there
  is one path.
  """

  supports_paths: ClassVar[bool] = True

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    if drafted.ndim == 3:
      return multi_path.sampled(keys, drafted, q_logits, p_logits, lengths)
    verifier.check_shapes(keys, drafted, q_logits, p_logits)
    p = jax.nn.softmax(p_logits)  # [B, G+1, V]
    q = jax.nn.softmax(q_logits)  # [B, G, V]
    u = verifier.uniforms(keys, (drafted.shape[1],))
    # u is in [0, 1), so a token with q > 0 and p = 0 never passes.
    passes = u * rows.pick(q, drafted) < rows.pick(p[:, :-1], drafted)
    num_accepted = verifier.prefix_length(passes, lengths)

    # Only the one position after the accepted prefix is needed.
    p_at = verifier.at(p, num_accepted)  # [B, V]
    q_at = verifier.proposal_at(q, num_accepted, lengths)
    rest = verifier.residual(p_at, q_at)
    return verifier.Verdict(num_accepted, verifier.sample_next(keys, rest))

  def greedy(self, keys, drafted, p_logits, lengths=None):
    if drafted.ndim == 3:
      return multi_path.greedy(drafted, p_logits, lengths)
    return greedy(drafted, p_logits, lengths)


def greedy(
    drafted: jax.Array,
    p_logits: jax.Array,
    lengths: jax.Array | None = None,
    also: jax.Array | None = None,
) -> verifier.Verdict:
  """Accepts what the target itself would emit.

  Args:
    drafted: int32[B, G].
    p_logits: float[B, G+1, V] target logits, not warped.
    lengths: as in `Verifier.sampled`.
    also: bool[B, G], which tokens pass besides the target's best; lossy.
  """
  shapes.bind_shapes(
      drafted=(drafted, 'B G'), p_logits=(p_logits[:, :-1], 'B G V')
  )
  best = rows.best(p_logits)  # [B, G+1]
  passes = drafted == best[:, :-1]
  if also is not None:
    passes |= also
  num_accepted = verifier.prefix_length(passes, lengths)
  return verifier.Verdict(num_accepted, verifier.at(best, num_accepted))
