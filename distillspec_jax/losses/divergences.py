"""Divergences between next-token distributions; p is the target, q the draft.

Each function maps two logit arrays float[..., V] to float32[...]: one value per
position, in nats unless noted, differentiable in both arguments. None of them
masks or averages; `objective.masked_sum` does both, in one place, for every
loss.

  forward_kl        sum_v p log(p/q)            q must cover every mode of p
  reverse_kl        sum_v q log(q/p)            q may sit on one mode of p
  jsd               beta KL(p|m) + (1-beta) KL(q|m),  m = beta p + (1-beta) q
  total_variation   1/2 sum_v |p - q|           no unit; 1 - TVD is acceptance

A column that is -inf in both arguments (a padding row of the vocabulary) adds
nothing and gets gradient 0. A token that only one of them can say makes a KL
infinite, as it should be in one direction; jsd and total_variation stay finite.
For a draft that has no column for some tokens at all (`models.columns`) there
is `covered_forward_kl`, which is of the others alone; the other divergences are
what they are, with q = 0 there.

Zhou et al. 2023, DistillSpec, https://arxiv.org/abs/2310.08461
Agarwal et al. 2023, GKD, https://arxiv.org/abs/2306.13649, equation (1)
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp

from distillspec_jax.core import errors
from distillspec_jax.core import shapes

Divergence = Callable[[jax.Array, jax.Array], jax.Array]


def forward_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
  """KL(p|q) = sum_v p log(p/q); its gradient in the draft's logits is q - p.

  Args:
    p_logits: float[..., V] target logits.
    q_logits: float[..., V] draft logits.

  Returns:
    float32[...] nats; inf where p allows a token that q rules out.
  """
  return _kl(*_log_probs(p_logits, q_logits))


def covered_forward_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
  """KL(p~|q), p~ = p given that the token is one that q allows; finite.

  KL(p|q) is infinite as soon as q rules out a token of p's. Its gradient in the
  draft's logits is q - p~, and 0 where q is 0. p~ for a draft of few tokens is
  of https://arxiv.org/abs/2602.23881.

  Args:
    p_logits: float[..., V] target logits.
    q_logits: float[..., V] draft logits, -inf where it has no column.

  Returns:
    float32[...] nats.
  """
  shapes.bind_shapes(p_logits=(p_logits, '... V'), q_logits=(q_logits, '... V'))
  return forward_kl(
      jnp.where(q_logits > -jnp.inf, p_logits, -jnp.inf), q_logits
  )


def reverse_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
  """KL(q|p) = sum_v q log(q/p).

  Args:
    p_logits: float[..., V] target logits.
    q_logits: float[..., V] draft logits.

  Returns:
    float32[...] nats; inf where q allows a token that p rules out.
  """
  log_p, log_q = _log_probs(p_logits, q_logits)
  return _kl(log_q, log_p)


def jsd(
    p_logits: jax.Array, q_logits: jax.Array, beta: float = 0.5
) -> jax.Array:
  """beta KL(p|m) + (1-beta) KL(q|m) with m = beta p + (1-beta) q.

  The scale shrinks with beta: jsd / beta tends to forward_kl as beta goes to 0
  and jsd / (1-beta) to reverse_kl as beta goes to 1, while jsd itself tends to
  0 at both ends. A sweep over beta therefore needs the learning rate retuned.

  Agarwal et al. 2023, https://arxiv.org/abs/2306.13649, equation (1).

  Args:
    p_logits: float[..., V] target logits.
    q_logits: float[..., V] draft logits.
    beta: weight of p in the mixture, strictly between 0 and 1.

  Returns:
    float32[...] nats, at most the entropy of (beta, 1-beta).

  Raises:
    UserError: beta is not strictly between 0 and 1.
  """
  _check_beta(beta)
  log_p, log_q = _log_probs(p_logits, q_logits)
  # logaddexp(-inf, -inf) has gradient nan; such a column weighs nothing below.
  absent = jnp.maximum(log_p, log_q) == -jnp.inf
  log_m = jnp.logaddexp(
      jnp.where(absent, 0.0, log_p) + math.log(beta),
      jnp.where(absent, 0.0, log_q) + math.log1p(-beta),
  )
  return beta * _kl(log_p, log_m) + (1.0 - beta) * _kl(log_q, log_m)


def total_variation(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
  """TVD(p, q); a drafted token is accepted with probability 1 - TVD.

  Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, section 3.2.

  The gradient is 0 where p equals q bit by bit; where rounding alone separates
  them it is not small, unlike that of the other divergences.

  Args:
    p_logits: float[..., V] target logits.
    q_logits: float[..., V] draft logits, warped exactly as when sampling.

  Returns:
    float32[...] in [0, 1].
  """
  p, q = _probs(p_logits, q_logits)
  return 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)  # [..., V] -> [...]


def acceptance(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
  """sum_v min(p, q) = 1 - TVD: the chance that a drafted token is accepted.

  Args:
    p_logits: float[..., V] target logits.
    q_logits: float[..., V] draft logits, warped exactly as when sampling.

  Returns:
    float32[...] in [0, 1].
  """
  return jnp.sum(jnp.minimum(*_probs(p_logits, q_logits)), axis=-1)


def cross_entropy(
    q_logits: jax.Array,
    labels: jax.Array,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
  """-log q(label), with the two options that T5 is trained with.

  With label smoothing s the label keeps 1 - s and the other V - 1 tokens share
  s; the entropy of that distribution is subtracted, so that the best possible
  value stays 0. Columns at -inf are no tokens and get no share. z_loss adds
  z_loss * log(Z)^2, Z = sum_v exp(logit), and keeps the logits from drifting.

  Args:
    q_logits: float[..., V] logits.
    labels: int32[...] tokens in [0, V).
    z_loss: weight of log(Z)^2, e.g. 1e-4; 0 is none.
    label_smoothing: s in [0, 1).

  Returns:
    float32[...] nats.

  Raises:
    UserError: z_loss is negative or label_smoothing outside [0, 1).
  """
  if not z_loss >= 0.0:
    raise errors.UserError(f'z_loss is {z_loss}; use a weight of at least 0.')
  if not 0.0 <= label_smoothing < 1.0:
    raise errors.UserError(
        f'label_smoothing is {label_smoothing}, outside [0, 1); use 0 for none.'
    )
  q_logits = q_logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(q_logits, axis=-1)  # [..., V] -> [...]
  # A sum, not a gather: it stays local where V is split over devices.
  is_label = jax.nn.one_hot(labels, q_logits.shape[-1], dtype=bool)
  loss = log_z - jnp.sum(q_logits, axis=-1, where=is_label)
  if label_smoothing:
    is_other = (q_logits > -jnp.inf) & ~is_label
    others = jnp.maximum(jnp.sum(is_other, axis=-1, dtype=jnp.float32), 1.0)
    keep, share = 1.0 - label_smoothing, label_smoothing / others
    rest = others * log_z - jnp.sum(q_logits, axis=-1, where=is_other)
    entropy = -keep * math.log(keep) - label_smoothing * jnp.log(share)
    loss = keep * loss + share * rest - entropy
  if z_loss:
    loss += z_loss * jnp.square(log_z)
  return loss


def named(
    name: str, beta: float | None = None, covered: bool = False
) -> Divergence:
  """The divergence of that name, as configuration files give it.

  Args:
    name: forward_kl, reverse_kl, jsd or total_variation.
    beta: for jsd alone; None is its default.
    covered: the draft has no column for some tokens: what would be infinite
      for that is taken over the others.

  Returns:
    A function of (p_logits, q_logits).

  Raises:
    UserError: the name is unknown, or beta is out of range or has no use.
  """
  known = {
      'forward_kl': covered_forward_kl if covered else forward_kl,
      'reverse_kl': reverse_kl,
      'jsd': jsd,
      'total_variation': total_variation,
  }
  if not isinstance(name, str) or name not in known:
    raise errors.UserError(
        f'Unknown divergence {name!r}; use one of {", ".join(known)}.'
    )
  if beta is None:
    return known[name]
  if name != 'jsd':
    raise errors.UserError(
        f'Divergence {name!r} has no beta, but beta is {beta}; leave it out or'
        " use 'jsd'."
    )
  _check_beta(beta)
  return functools.partial(jsd, beta=beta)


def _check_beta(beta: float) -> None:
  if not 0.0 < beta < 1.0:
    raise errors.UserError(
        f'jsd has beta {beta}, outside the open interval (0, 1), where it is 0'
        ' for any p and q; use forward_kl for the limit 0 and reverse_kl for'
        ' the limit 1.'
    )


def _log_probs(p_logits, q_logits):
  shapes.bind_shapes(p_logits=(p_logits, '... V'), q_logits=(q_logits, '... V'))
  return (
      jax.nn.log_softmax(p_logits.astype(jnp.float32)),
      jax.nn.log_softmax(q_logits.astype(jnp.float32)),
  )


def _probs(p_logits, q_logits):
  shapes.bind_shapes(p_logits=(p_logits, '... V'), q_logits=(q_logits, '... V'))
  return (
      jax.nn.softmax(p_logits.astype(jnp.float32)),
      jax.nn.softmax(q_logits.astype(jnp.float32)),
  )


def _kl(log_p, log_q):
  p = jnp.exp(log_p)
  # 0 log 0 is 0. The difference may be -inf - -inf = nan where p is 0, and
  # being linear it passes the 0 gradient of `where` on unharmed.
  log_ratio = jnp.where(p > 0.0, log_p - log_q, 0.0)
  return jnp.sum(p * log_ratio, axis=-1)  # [..., V] -> [...]
