"""`ds.generate`: texts or tokens in, texts and tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.models import pretrained
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative

_EOS = 1


@dataclasses.dataclass(frozen=True)
class Generation:
  """What was generated.

  Attributes:
    text: one string a row; empty where the target has no vocabulary.
    tokens: int32[B, L], EOS included, 0 after it.
    lengths: int32[B].
    origins: int8[B, L], a `samples.Origin` a token.
    statistics: counts a row, with `acceptance_rate` and `block_efficiency`.
  """

  text: list[str]
  tokens: np.ndarray
  lengths: np.ndarray
  origins: np.ndarray
  statistics: samples_lib.Statistics


def generate(
    target: pretrained.Model,
    inputs: Sequence[str] | np.ndarray | jax.Array,
    *,
    draft: pretrained.Model | None = None,
    max_new_tokens: int = 128,
    block_length: int = 5,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    verification: str = 'token',
    lenience: tuple | None = None,
    seed: int = 0,
) -> Generation:
  """Answers of the target, faster where a draft is given.

  The answers have the target's distribution with a draft and without; greedy
  (temperature 0) they are the same tokens. (Not so with `lenience`.)

  Args:
    target: the model that decides.
    inputs: strings, or int32[B, S] padded with 0.
    draft: the model that proposes; None decodes autoregressively.
    max_new_tokens: length of an answer at most, EOS included.
    block_length: tokens drafted before each call of the target.
    temperature: 0 is greedy.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that reach this probability together.
    verification: 'token', or 'block', which accepts no fewer tokens.
    lenience: None is lossless; (function, epsilon) accepts more, see `lenient`:
      function 'linear', 'square' or 'exponential', epsilon in (0, 1].
    seed: row i draws from the stream (seed, i), whatever the batch; in
      [0, 2**32).

  Raises:
    UserError: models that do not fit, settings out of range, no inputs, or
      strings for a model without a vocabulary.
  """
  check_seed(seed)
  decoding = decoding_lib.Decoding(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      block_length=min(block_length, max_new_tokens)
      if draft is None
      else block_length,
      verification=verification,
      lenience=lenience,
      max_new_tokens=max_new_tokens,
      eos_id=_EOS,
  )
  if draft is not None:
    pretrained.check_pair(target, draft)
  tokens, segments = _tokens(target, inputs)
  numbers = jnp.arange(tokens.shape[0])
  out = sample(target, draft, tokens, segments, numbers, decoding, seed)
  text = []
  if target.vocabulary is not None:
    text = [
        detokenize(target.vocabulary, row[:length])
        for row, length in zip(out.tokens, out.lengths)
    ]
  return Generation(text, out.tokens, out.lengths, out.origins, out.statistics)


def sample(
    target: pretrained.Model,
    draft: pretrained.Model | None,
    tokens: jax.Array | np.ndarray,
    segments: jax.Array | np.ndarray,
    numbers: jax.Array | np.ndarray,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> samples_lib.Samples:
  """Answers to tokenised inputs, on the host.

  Args:
    target: the model that decides.
    draft: the model that proposes, or None.
    tokens: int32[B, S].
    segments: int32[B, S], 0 is padding.
    numbers: int32[B]; row b draws from the stream (seed, numbers[b]).
    decoding: settings.
    seed: of all streams.
  """
  keys = randomness.row_keys(jax.random.key(seed), jnp.asarray(numbers))
  tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
  if draft is None:
    out = autoregressive.generate(
        target.transformer, target.params, tokens, segments, keys, decoding
    )
  else:
    out = speculative.generate(
        target.transformer,
        target.params,
        draft.transformer,
        draft.params,
        tokens,
        segments,
        keys,
        decoding,
    )
  return jax.device_get(out)


def check_seed(seed: int) -> None:
  """Raises UserError for seeds that share their streams with another."""
  if not 0 <= seed < 2**32:
    raise errors.UserError(
        f'seed is {seed}; it must lie in [0, 2**32): of other numbers only the'
        ' last 32 bits are used.'
    )


def detokenize(vocabulary, tokens: np.ndarray) -> str:
  """The text of a row, without EOS."""
  return vocabulary.decode([int(t) for t in tokens if t != _EOS])


def _tokens(
    target: pretrained.Model, inputs: Sequence[str] | np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Tokens and segments int32[B, S]."""
  if hasattr(inputs, 'shape'):
    if len(inputs.shape) != 2 or not inputs.shape[0]:
      raise errors.UserError(
          f'inputs has shape {inputs.shape}; give int32[B, S] with B at least'
          ' 1, or a list of strings.'
      )
    tokens = jnp.asarray(inputs, jnp.int32)
    return tokens, (tokens != 0).astype(jnp.int32)
  if isinstance(inputs, str):
    raise errors.UserError(
        f'inputs is one string, {inputs[:40]!r}; give a list of strings.'
    )
  if not inputs:
    raise errors.UserError('inputs is empty; give at least one string.')
  if target.vocabulary is None:
    raise errors.UserError(
        f'The model {target.name} has no vocabulary, so it cannot read strings;'
        ' give tokens int32[B, S].'
    )
  return pad([tokenize(target, text) for text in inputs])


def tokenize(model: pretrained.Model, text: str) -> list[int]:
  """The tokens that the model reads for a text; its encoder's end with EOS."""
  tokens = list(model.vocabulary.encode(text))
  return tokens if model.config.is_decoder_only else [*tokens, _EOS]


def width(length: int) -> int:
  """The next power of two: similar inputs share a compiled program."""
  return max(8, 1 << (length - 1).bit_length()) if length else 0


def pad(
    rows: Sequence[Sequence[int]], size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and segments int32[B, S] of rows of any lengths.

  Args:
    rows: tokens of each row.
    size: S; default: the `width` of the longest row.
  """
  if size is None:
    size = width(max(len(row) for row in rows))
  tokens = np.zeros((len(rows), size), np.int32)
  segments = np.zeros_like(tokens)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
    segments[i, : len(row)] = 1
  return tokens, segments
