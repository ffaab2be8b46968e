"""Several independent drafts of a block: what one misses another may have.

K paths of G tokens part at the last token that was said. The target reads all
of them at once; verification walks down from there, and at each token tries
what the paths that are still alive say next, one after the other. A path lives
as long as it says the accepted tokens. What is emitted has exactly the target's
law, and with one path the rule is token verification.

Miao et al. 2023, SpecInfer, https://arxiv.org/abs/2305.09781, algorithm 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import shapes
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import verification


def paths(
    keys: jax.Array,
    drafted: jax.Array,
    q_logits: jax.Array,
    p_logits: jax.Array,
    lengths: jax.Array | None = None,
) -> verification.Verdict:
  """Accepts tokens down the paths and samples the one after them.

  After the same accepted tokens all living paths drafted from the same q, so
  they are independent candidates: x passes with probability
  min(1, p(x) / q(x)); if it does not, p becomes max(p - q, 0), normalised,
  before the next is tried. When none is left, the token is drawn from what p
  has become. Example, K = 2, G = 2:

    drafted = [[a, b], [c, d]]   depth by depth: the paths are a c and b d
    a is rejected, b passes, d is rejected   emitted = [b, x]

  Args:
    keys: key[B], one a row, consumed.
    drafted: int32[B, G, K], each path sampled from softmax(q_logits).
    q_logits: float32[B, G, K, V], the very logits that produced `drafted`.
    p_logits: float32[B, 1 + G * K, V] target logits, warped as q's: before the
      paths part, then after each of `drafted` in its own order.
    lengths: int32[B, K] how many tokens of a path count, in [0, G]; decided by
      the draft, from that path alone. Default: all.
  """
  shapes.bind_shapes(
      keys=(keys, 'B'),
      drafted=(drafted, 'B G K'),
      q_logits=(q_logits, 'B G K V'),
      p_logits=(p_logits[:, 0], 'B V'),
  )
  _check_places(drafted, p_logits)
  _, depths, number = drafted.shape
  u = randomness.uniform(randomness.streams(keys, 'accept'), (depths, number))
  if lengths is None:
    lengths = jnp.full(drafted.shape[::2], depths)

  def deeper(carry, here):
    p, alive, verdict = carry
    depth, drafted, u, q_logits = here  # [], [B, K], [B, K], [B, K, V]
    alive &= depth < lengths
    q = jax.nn.softmax(verification.at(q_logits, verdict.path))  # [B, V]
    passed, p, token = _try(p, q, drafted, u, alive)
    alive = survivors(alive, drafted, token, passed)
    path = jnp.where(passed, jnp.argmax(alive, axis=1), verdict.path)
    after = verification.at(p_logits, 1 + depth * number + path)
    p = jnp.where(passed[:, None], jax.nn.softmax(after), p)
    num_accepted = verdict.num_accepted + passed
    verdict = verification.Verdict(num_accepted, token, path)
    return (p, alive, verdict), None

  none = jnp.zeros(drafted.shape[0], jnp.int32)
  start = (
      jax.nn.softmax(p_logits[:, 0]),
      jnp.ones(drafted.shape[::2], bool),
      verification.Verdict(none, none, none),
  )
  by_depth = jax.tree.map(
      lambda array: jnp.swapaxes(array, 0, 1), (drafted, u, q_logits)
  )
  (p, _, verdict), _ = jax.lax.scan(
      deeper, start, (jnp.arange(depths), *by_depth)
  )
  return verdict._replace(next_token=verification.draw_next(keys, p))


def greedy(
    drafted: jax.Array, p_logits: jax.Array, lengths: jax.Array | None = None
) -> verification.Verdict:
  """Follows the path that says longest what the target would have said itself.

  Args:
    drafted: int32[B, G, K].
    p_logits: float[B, 1 + G * K, V] target logits, not warped; see `paths`.
    lengths: as in `paths`.
  """
  shapes.bind_shapes(
      drafted=(drafted, 'B G K'), p_logits=(p_logits[:, 0], 'B V')
  )
  _check_places(drafted, p_logits)
  batch, depths, number = drafted.shape
  best = rows.best(p_logits)  # [B, 1 + G * K]
  after = best[:, 1:].reshape(batch, depths, number)
  root = jnp.broadcast_to(best[:, :1, None], (batch, 1, number))
  said = jnp.concatenate([root, after], axis=1)  # [B, G + 1, K]
  agrees = drafted == said[:, :-1]
  if lengths is not None:
    agrees &= jnp.arange(depths)[None, :, None] < lengths[:, None]
  agreed = jnp.cumprod(agrees.astype(jnp.int32), axis=1).sum(axis=1)  # [B, K]
  path = jnp.argmax(agreed, axis=1).astype(jnp.int32)
  num_accepted = verification.at(agreed, path)
  next_token = verification.at(verification.at(said, num_accepted), path)
  return verification.Verdict(num_accepted, next_token, path)


def along(logits: jax.Array, path: jax.Array, number: int) -> jax.Array:
  """What stands on path int32[B]: [B, 1 + G * K, ...] -> [B, G + 1, ...].

  Args:
    logits: one before the paths part, then of all paths in turn.
    path: in [0, K).
    number: K.
  """
  size = logits.shape[1] // number
  first = jnp.zeros_like(path)[:, None]
  after = 1 + path[:, None] + number * jnp.arange(size)[None]
  places = jnp.concatenate([first, after], axis=1)  # [B, G + 1]
  return jax.vmap(lambda row, places: row[places])(logits, places)


def _try(
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
    # u in [0, 1): what p cannot say never passes.
    passes = u[:, k] * verification.at(q, x) < verification.at(p, x)
    token = jnp.where(tried & passes, x, token)
    passed |= tried & passes
    left = verification.residual(p, q)
    p = jnp.where((tried & ~passes)[:, None], left, p)
  return passed, p, token


def survivors(
    alive: jax.Array, drafted: jax.Array, token: jax.Array, passed: jax.Array
) -> jax.Array:
  """bool[B, K]: the living paths that say the accepted token, if one is."""
  return alive & (drafted == token[:, None]) & passed[:, None]


def _check_places(drafted: jax.Array, p_logits: jax.Array) -> None:
  _, depths, number = drafted.shape
  if p_logits.shape[1] != 1 + depths * number:
    raise ValueError(
        f'`p_logits` has {p_logits.shape[1]} places a row; {number} paths of'
        f' {depths} tokens need {1 + depths * number}.'
    )
