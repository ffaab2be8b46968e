"""Which tokens the columns of an output layer are.

A whole output layer has a column for each token, in order. One that is cut has
columns for some tokens only (`T5Config.output_tokens`); q of every other token
is zero. Callers go through this class and need not know which they have:

  unembed -> cut -> [.., V'] -> argmax or draw -> tokens   the cheap way
                    [.., V'] -> spread -> [.., V]          where all are needed
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Columns:
  """Columns of logits, for tokens below `vocabulary`.

  Attributes:
    output_tokens: token of each column, ascending; None: all tokens in order.
    vocabulary: V; tokens from here on are left out, as of the padding rows of
      the larger model of a pair.
  """

  output_tokens: tuple[int, ...] | None
  vocabulary: int

  @property
  def are_all(self) -> bool:
    """Whether every token has a column."""
    return self.output_tokens is None

  @functools.cached_property
  def _tokens(self) -> np.ndarray:
    """int32[V'] token of each column."""
    if self.output_tokens is None:
      return np.arange(self.vocabulary, dtype=np.int32)
    tokens = np.array(self.output_tokens, np.int32)
    return tokens[tokens < self.vocabulary]

  @functools.cached_property
  def _column(self) -> np.ndarray:
    """int32[V] column of each token; V' where it has none."""
    found = np.full(self.vocabulary, len(self._tokens), np.int32)
    found[self._tokens] = np.arange(len(self._tokens))
    return found

  def cut(self, logits: jax.Array) -> jax.Array:
    """The columns float[..., V'] of tokens below `vocabulary`."""
    return logits[..., : len(self._tokens)]

  def tokens(self, columns: jax.Array) -> jax.Array:
    """int32[...] tokens of column numbers int[...]."""
    columns = columns.astype(jnp.int32)
    if self.are_all:
      return columns
    return jnp.asarray(self._tokens)[columns]

  def of(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Columns int32[...] of tokens (0 for none), and which have one."""
    if self.are_all:
      return tokens, jnp.ones(tokens.shape, bool)
    columns = jnp.asarray(self._column)[tokens]
    known = columns < len(self._tokens)
    return jnp.where(known, columns, 0), known

  def spread(self, logits: jax.Array) -> jax.Array:
    """Logits float[..., V] of float[..., V'], -inf where there is no column."""
    if self.are_all:
      return logits
    # A gather: XLA's scatter on a CPU goes element by element.
    beside = [(0, 0)] * (logits.ndim - 1) + [(0, 1)]
    padded = jnp.pad(logits, beside, constant_values=-jnp.inf)
    return _take(padded, self._column)

  def gather(self, logits: jax.Array) -> jax.Array:
    """Logits float[..., V'] of the tokens with a column, of float[..., V]."""
    if self.are_all:
      return logits
    return _take(logits, self._tokens)

  def gather_and_rest(self, logits: jax.Array) -> jax.Array:
    """Logits float[..., V' + 1]: after those of `gather`, one for the rest.

    Its softmax is that of all logits with the tokens without a column put
    together: log sum_v exp(logit), or -inf where there are none.
    """
    rest = np.ones(self.vocabulary, bool)
    rest[self._tokens] = False
    if not rest.any():
      others = jnp.full(logits.shape[:-1], -jnp.inf, logits.dtype)
    else:
      others = jax.nn.logsumexp(
          jnp.where(_like(rest, logits), logits, -jnp.inf), axis=-1
      )
    return jnp.concatenate([self.gather(logits), others[..., None]], axis=-1)


def _take(array: jax.Array, columns: np.ndarray) -> jax.Array:
  return jnp.take(array, jnp.asarray(columns), axis=-1, mode='clip')


def _like(values: np.ndarray, array: jax.Array) -> jax.Array:
  """[V] with as many axes as the array."""
  return jnp.asarray(values).reshape((1,) * (array.ndim - 1) + (-1,))
