"""Multi-path drafts: several independent drafts of a block, judged exactly.

K paths of G tokens branch off after the last emitted token. The target reads
all of them at once. Verification walks down from the branching point and, at
each depth, tries the tokens of the paths that are still alive, one after the
other; a path lives as long as it agrees with the accepted tokens. What is
emitted has exactly the target's distribution, and with one path the rule is
token verification.

Miao et al. 2023, SpecInfer, https://arxiv.org/abs/2305.09781, algorithm 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distillspec_jax.core import shapes
from distillspec_jax.sampling import rows
from distillspec_jax.sampling.verification import verifier


def sampled(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array,
    p_logits: jax.Array,
    lengths: jax.Array | None = None,
) -> verifier.Verdict:
  """Accepts tokens down the paths and samples the one after them.

  After the same accepted tokens all living paths drafted from the same q, so
  they are independent candidates: x passes with probability
  min(1, p(x) / q(x)); if it does not, p becomes max(p - q, 0), normalised,
  before the next is tried. When none is left, the token is sampled from what p
  has become. Example, K = 2, G = 2:

    drafted = [[a, b], [c, d]]   depth by depth: the paths are a c and b d
    a is rejected, b passes, d is rejected   emitted = [b, x]

  Args:
    keys: key[B], one for each row, consumed.
    drafted: int32[B, G, K], each path sampled from softmax(q_logits).
    q_logits: float32[B, G, K, V], the very logits that produced `drafted`.
    p_logits: float32[B, 1 + G * K, V] target logits, warped as q's: before the
      paths branch off, then after each of `drafted` in its order.
    lengths: int32[B, K] how many tokens of a path count, in [0, G]; decided by
      the draft, from that path alone. Default: all.
  """
  shapes.bind_shapes(
      keys=(keys, 'B'),
      drafted=(drafted, 'B G K'),
      q_logits=(q_logits, 'B G K V'),
      p_logits=(p_logits[:, 0], 'B V'),
  )
  _check_positions(drafted, p_logits)
  _, depths, number = drafted.shape
  u = verifier.uniforms(keys, (depths, number))
  if lengths is None:
    lengths = jnp.full(drafted.shape[::2], depths)

  def deeper(carry, here):
    p, alive, verdict = carry
    depth, drafted, u, q_logits = here  # [], [B, K], [B, K], [B, K, V]
    alive &= depth < lengths
    q = jax.nn.softmax(verifier.at(q_logits, verdict.path))  # [B, V]
    passed, p, token = _try_candidates(p, q, drafted, u, alive)
    alive = survivors(alive, drafted, token, passed)
    path = jnp.where(passed, jnp.argmax(alive, axis=1), verdict.path)
    after = verifier.at(p_logits, 1 + depth * number + path)
    p = jnp.where(passed[:, None], jax.nn.softmax(after), p)
    num_accepted = verdict.num_accepted + passed
    verdict = verifier.Verdict(num_accepted, token, path)
    return (p, alive, verdict), None

  none = jnp.zeros(drafted.shape[0], jnp.int32)
  start = (
      jax.nn.softmax(p_logits[:, 0]),
      jnp.ones(drafted.shape[::2], bool),
      verifier.Verdict(none, none, none),
  )
  by_depth = jax.tree.map(
      lambda array: jnp.swapaxes(array, 0, 1), (drafted, u, q_logits)
  )
  (p, _, verdict), _ = jax.lax.scan(
      deeper, start, (jnp.arange(depths), *by_depth)
  )
  return verdict._replace(next_token=verifier.sample_next(keys, p))


def greedy(
    drafted: jax.Array, p_logits: jax.Array, lengths: jax.Array | None = None
) -> verifier.Verdict:
  """Follows the path that agrees longest with the target's own tokens.

  Args:
    drafted: int32[B, G, K].
    p_logits: float[B, 1 + G * K, V] target logits, not warped; see `sampled`.
    lengths: as in `sampled`.
  """
  shapes.bind_shapes(
      drafted=(drafted, 'B G K'), p_logits=(p_logits[:, 0], 'B V')
  )
  _check_positions(drafted, p_logits)
  batch, depths, number = drafted.shape
  best = rows.best(p_logits)  # [B, 1 + G * K]
  after = best[:, 1:].reshape(batch, depths, number)
  root = jnp.broadcast_to(best[:, :1, None], (batch, 1, number))
  predicted = jnp.concatenate([root, after], axis=1)  # [B, G + 1, K]
  agrees = drafted == predicted[:, :-1]
  if lengths is not None:
    agrees &= jnp.arange(depths)[None, :, None] < lengths[:, None]
  agreed = jnp.cumprod(agrees.astype(jnp.int32), axis=1).sum(axis=1)  # [B, K]
  path = jnp.argmax(agreed, axis=1).astype(jnp.int32)
  num_accepted = verifier.at(agreed, path)
  next_token = verifier.at(verifier.at(predicted, num_accepted), path)
  return verifier.Verdict(num_accepted, next_token, path)


def along_path(logits: jax.Array, path: jax.Array, number: int) -> jax.Array:
  """The entries of path int32[B]: [B, 1 + G * K, ...] -> [B, G + 1, ...].

  Args:
    logits: one before the paths branch off, then those of all paths in turn.
    path: in [0, K).
    number: K.
  """
  size = logits.shape[1] // number
  first = jnp.zeros_like(path)[:, None]
  after = 1 + path[:, None] + number * jnp.arange(size)[None]
  places = jnp.concatenate([first, after], axis=1)  # [B, G + 1]
  return jax.vmap(lambda row, places: row[places])(logits, places)


def _try_candidates(
    p: jax.Array,
    q: jax.Array,
    drafted: jax.Array,
    u: jax.Array,
    alive: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Whether one of the candidates passes, what p is then, and the candidate."""
  passed = jnp.zeros(drafted.shape[0], bool)
  token = jnp.zeros_like(drafted[:, 0])
  for k in range(drafted.shape[1]):
    x = drafted[:, k]
    tried = alive[:, k] & ~passed
    # u is in [0, 1), so a token with p = 0 never passes.
    passes = u[:, k] * verifier.at(q, x) < verifier.at(p, x)
    token = jnp.where(tried & passes, x, token)
    passed |= tried & passes
    left = verifier.residual(p, q)
    p = jnp.where((tried & ~passes)[:, None], left, p)
  return passed, p, token


def survivors(
    alive: jax.Array, drafted: jax.Array, token: jax.Array, passed: jax.Array
) -> jax.Array:
  """bool[B, K]: the living paths that agree with the accepted token."""
  return alive & (drafted == token[:, None]) & passed[:, None]


def _check_positions(drafted: jax.Array, p_logits: jax.Array) -> None:
  _, depths, number = drafted.shape
  if p_logits.shape[1] != 1 + depths * number:
    raise ValueError(
        f'`p_logits` has {p_logits.shape[1]} positions; {number} paths of'
        f' {depths} tokens need {1 + depths * number}.'
    )
