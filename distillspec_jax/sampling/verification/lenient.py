"""Lenient verification, lossy: drafted tokens pass more easily.

A drafted token x passes with probability min(1, f(p(x)) / q(x)), where f is at
least p. The three functions of DistillSpec (Zhou et al. 2023,
https://arxiv.org/abs/2310.08461, section 5.3), epsilon in [1e-6, 1]:

  linear        f = p / epsilon
  square        f = p / epsilon^2
  exponential   f = p^epsilon

epsilon = 1 is lossless, epsilon -> 0 accepts everything. With 'linear' no token
becomes more likely than p / epsilon (Leviathan et al. 2023, appendix A.5).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from distillspec_jax.core import check
from distillspec_jax.core import shapes
from distillspec_jax.sampling import rows
from distillspec_jax.sampling.verification import token
from distillspec_jax.sampling.verification import verifier


@dataclasses.dataclass(frozen=True)
class Lenient(verifier.Verifier):
  """Token verification with f(p) in place of p.

  Greedy, a token passes whose f(p) reaches the largest p, at temperature 1;
  corrections are the target's best token.

  Attributes:
    function: 'linear', 'square' or 'exponential'.
    epsilon: in [1e-6, 1]; 1 is lossless.
    residual: what a rejected token is replaced by, which the paper leaves open:
      drawn from max(0, p - q) ('target'), or from max(0, f(p) - q) ('relaxed').
  """

  function: str
  epsilon: float
  residual: str = 'target'
  is_lossless: ClassVar[bool] = False

  def __post_init__(self):
    check.one_of(
        ('linear', 'square', 'exponential'),
        owner='Lenient',
        function=self.function,
    )
    # p / epsilon^2 must stay finite in float32.
    check.in_interval(
        '[1e-6, 1]', owner='Lenient', hint='1 is lossless', epsilon=self.epsilon
    )
    check.one_of(('target', 'relaxed'), owner='Lenient', residual=self.residual)

  def relaxed(self, p: jax.Array) -> jax.Array:
    """f(p) float32[...], at least p."""
    if self.function == 'exponential':
      return p**self.epsilon
    power = 2 if self.function == 'square' else 1
    return p / self.epsilon**power

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verifier.check_shapes(keys, drafted, q_logits, p_logits)
    p = jax.nn.softmax(p_logits)  # [B, G+1, V]
    q = jax.nn.softmax(q_logits)  # [B, G, V]
    u = verifier.uniforms(keys, (drafted.shape[1],))
    p_drafted = rows.pick(p[:, :-1], drafted)  # [B, G]
    passes = u * rows.pick(q, drafted) < self.relaxed(p_drafted)
    num_accepted = verifier.prefix_length(passes, lengths)
    p_at = verifier.at(p, num_accepted)  # [B, V]
    q_at = verifier.proposal_at(q, num_accepted, lengths)
    if self.residual == 'relaxed':
      # A bonus token was not rejected: it is the target's own.
      drafts = drafted.shape[1] if lengths is None else lengths
      is_bonus = (num_accepted == drafts)[:, None]
      p_at = jnp.where(is_bonus, p_at, self.relaxed(p_at))
    rest = verifier.residual(p_at, q_at)
    return verifier.Verdict(num_accepted, verifier.sample_next(keys, rest))

  def greedy(self, keys, drafted, p_logits, lengths=None):
    shapes.bind_shapes(
        drafted=(drafted, 'B G'), p_logits=(p_logits[:, :-1], 'B G V')
    )
    p = jax.nn.softmax(p_logits[:, :-1].astype(jnp.float32))  # [B, G, V]
    is_near = self.relaxed(rows.pick(p, drafted)) >= p.max(axis=-1)
    return token.greedy(drafted, p_logits, lengths, also=is_near)
