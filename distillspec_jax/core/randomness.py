"""Named random streams: one key for a purpose, one key for a row.

A key is never made from chance or stored twice. `stream` derives an
independent key for a purpose from its name; `row_keys` gives each row of a
batch a key of its own, so that what a row draws does not depend on the rows
beside it, on the batch size or on the mesh.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

# Of a vocabulary; about its square root, and what the sizes of vocabularies and
# of a mesh have in common, so that pieces stay on their devices.
_PIECES = 128


def stream(key: jax.Array, name: str) -> jax.Array:
  """The key of the purpose `name`, e.g. stream(key, 'dropout')."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def row_keys(key: jax.Array, rows: int | jax.Array) -> jax.Array:
  """One key a row.

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
  and a token in it, which takes two random numbers where Gumbel's way takes V.
  A token whose logit is -inf is never drawn.
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
  """int32[]: where the running sum of weights float32[N] passes u of it all."""
  sums = jnp.cumsum(weights)
  index = jnp.sum(sums <= u * sums[-1], dtype=jnp.int32)
  # Rounding may make the product the whole sum.
  last = weights.shape[0] - 1 - jnp.argmax(weights[::-1] > 0.0)
  return jnp.minimum(index, last.astype(jnp.int32))


def streams(keys: jax.Array, name: str) -> jax.Array:
  """key[B]: every row's key of the purpose `name`."""
  return jax.vmap(lambda key: stream(key, name))(keys)


def events(keys: jax.Array, number: int | jax.Array) -> jax.Array:
  """key[B]: every row's key of event `number`, which may be traced."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
