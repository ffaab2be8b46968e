"""Named random streams: one key for each purpose, one key for each row.

Keys come from seeds alone and are never used twice. `stream` derives an
independent key for a purpose from its name; `row_keys` gives each row of a
batch a key of its own, so that what a row draws does not depend on the other
rows, the batch size or the mesh.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

# Pieces of a vocabulary in `categorical`: about its square root, and a common
# divisor of vocabulary sizes, a multiple of mesh sizes, so that no piece is
# split over devices.
_PIECES = 128


def stream(key: jax.Array, name: str) -> jax.Array:
  """The key of the purpose `name`, e.g. stream(key, 'dropout')."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def row_keys(key: jax.Array, rows: int | jax.Array) -> jax.Array:
  """One key for each row.

  Args:
    key: a single PRNG key.
    rows: the number of rows B, or int32[B] row numbers that identify them.

  Returns:
    key[B].
  """
  numbers = jnp.arange(rows) if isinstance(rows, int) else rows
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def uniform(keys: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
  """float32[B, *shape] in [0, 1), every row from its own key[B]."""
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def categorical(keys: jax.Array, logits: jax.Array) -> jax.Array:
  """int32[B] drawn from softmax(logits float[B, V]), row by row.

  The distribution function is inverted in two steps, a piece of the vocabulary
  and a token in it, which takes two random numbers where the Gumbel trick takes
  V. A token whose logit is -inf is never drawn.
  """

  def one(key, logits):
    size = -(-logits.shape[0] // _PIECES)
    weights = jnp.exp(logits.astype(jnp.float32) - jnp.max(logits))
    weights = jnp.pad(weights, (0, _PIECES * size - logits.shape[0]))
    weights = weights.reshape(_PIECES, size)
    u = jax.random.uniform(key, (2,))
    piece = _invert(jnp.sum(weights, axis=1), u[0])
    return piece * size + _invert(weights[piece], u[1])

  return jax.vmap(one)(keys, logits)


def _invert(weights: jax.Array, u: jax.Array) -> jax.Array:
  """int32[]: where the cumulative sum of weights float32[N] exceeds u * sum."""
  sums = jnp.cumsum(weights)
  index = jnp.sum(sums <= u * sums[-1], dtype=jnp.int32)
  # Rounding may make the product equal the sum.
  last = weights.shape[0] - 1 - jnp.argmax(weights[::-1] > 0.0)
  return jnp.minimum(index, last.astype(jnp.int32))


def streams(keys: jax.Array, name: str) -> jax.Array:
  """key[B]: every row's key of the purpose `name`."""
  return jax.vmap(lambda key: stream(key, name))(keys)


def events(keys: jax.Array, number: int | jax.Array) -> jax.Array:
  """key[B]: every row's key of event `number`, which may be traced."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
