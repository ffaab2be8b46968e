"""An output layer that has logits for some tokens only.

A draft may propose from the frequent part of the vocabulary alone
(`T5Config.trimmed_vocabulary`); q of every other token is zero. Callers go
through this class and need not know whether a model's vocabulary is trimmed:

  unembed -> trim -> [..., V'] -> argmax or sample -> to_tokens   the cheap way
                     [..., V'] -> expand -> [..., V]              for all tokens

Zhao et al. 2025, FR-Spec, https://arxiv.org/abs/2502.14856.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class TrimmedVocabulary:
  """Which tokens the logits float[..., V'] of an output layer stand for.

  Attributes:
    kept: token of each logit, ascending; None: all tokens, in order.
    size: V; tokens from here on do not exist, such as the padding rows of the
      larger model of a pair.
  """

  kept: tuple[int, ...] | None
  size: int

  @property
  def is_full(self) -> bool:
    """Whether every token has a logit."""
    return self.kept is None

  @functools.cached_property
  def _tokens(self) -> np.ndarray:
    """int32[V'] token of each logit."""
    if self.kept is None:
      return np.arange(self.size, dtype=np.int32)
    tokens = np.array(self.kept, np.int32)
    return tokens[tokens < self.size]

  @functools.cached_property
  def _index(self) -> np.ndarray:
    """int32[V] index of each token's logit; V' where it has none."""
    index = np.full(self.size, len(self._tokens), np.int32)
    index[self._tokens] = np.arange(len(self._tokens))
    return index

  def trim(self, logits: jax.Array) -> jax.Array:
    """The logits float[..., V'] of tokens below `size`."""
    return logits[..., : len(self._tokens)]

  def to_tokens(self, index: jax.Array) -> jax.Array:
    """Tokens int32[...] of indices int[...] into the trimmed logits."""
    index = index.astype(jnp.int32)
    if self.is_full:
      return index
    return jnp.asarray(self._tokens)[index]

  def to_indices(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices int32[...] of tokens (0 where trimmed), and bool[...] kept."""
    if self.is_full:
      return tokens, jnp.ones(tokens.shape, bool)
    index = jnp.asarray(self._index)[tokens]
    is_kept = index < len(self._tokens)
    return jnp.where(is_kept, index, 0), is_kept

  def expand(self, logits: jax.Array) -> jax.Array:
    """Logits float[..., V] of float[..., V'], -inf for trimmed tokens."""
    if self.is_full:
      return logits
    # A gather, because XLA's scatter on a CPU goes element by element: index V'
    # reads the -inf that is appended here.
    pad = [(0, 0)] * (logits.ndim - 1) + [(0, 1)]
    padded = jnp.pad(logits, pad, constant_values=-jnp.inf)
    return _take(padded, self._index)

  def gather(self, logits: jax.Array) -> jax.Array:
    """Logits float[..., V'] of the kept tokens, of float[..., V]."""
    if self.is_full:
      return logits
    return _take(logits, self._tokens)

  def gather_with_rest(self, logits: jax.Array) -> jax.Array:
    """Logits float[..., V' + 1]: after those of `gather`, one for the rest.

    Its softmax is that of all logits with the trimmed tokens merged into one:
    log sum_v exp(logit), or -inf where there are none.
    """
    is_trimmed = np.ones(self.size, bool)
    is_trimmed[self._tokens] = False
    if not is_trimmed.any():
      rest = jnp.full(logits.shape[:-1], -jnp.inf, logits.dtype)
    else:
      mask = jnp.asarray(is_trimmed).reshape((1,) * (logits.ndim - 1) + (-1,))
      rest = jax.nn.logsumexp(jnp.where(mask, logits, -jnp.inf), axis=-1)
    return jnp.concatenate([self.gather(logits), rest[..., None]], axis=-1)


def _take(array: jax.Array, index: np.ndarray) -> jax.Array:
  return jnp.take(array, jnp.asarray(index), axis=-1, mode='clip')
