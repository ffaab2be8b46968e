"""Settings of single sequences, checked on the host before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import check as check_lib
from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.data import files
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import stopping


@dataclasses.dataclass(frozen=True)
class Requests:
  """Settings of sequences; those that all share are numbers.

  Attributes:
    max_new_tokens: a number, or int64[n], one for each sequence.
    min_new_tokens: likewise.
    temperature: likewise, float64[n].
    seed: likewise.
    prefix: tokens of each sequence, or None.
    stop: automaton of the stop strings, or None.
    stop_state: int32[n] its states before the first new token; None: its start.
  """

  max_new_tokens: int | np.ndarray
  min_new_tokens: int | np.ndarray
  temperature: float | np.ndarray
  seed: int | np.ndarray
  prefix: list[list[int]] | None = None
  stop: stopping.Automaton | None = None
  stop_state: np.ndarray | None = None

  @property
  def longest(self) -> int:
    return int(np.max(self.max_new_tokens))

  def controls(self, numbers: Sequence[int]) -> controls_lib.Controls:
    """The controls of a batch of the sequences with these numbers."""
    index = np.asarray(numbers)

    def rows(values, dtype):
      if np.ndim(values) == 0:
        return None  # the same for all, in `Decoding`
      return jnp.asarray(values[index], dtype)

    prefix = None
    if self.prefix is not None:
      size = batching.width(max(map(len, self.prefix)))
      padded = batching.pad([self.prefix[i] for i in numbers], size)
      prefix = types.Prompt(*map(jnp.asarray, padded))
    min_new_tokens = None
    if np.any(self.min_new_tokens):
      min_new_tokens = rows(self.min_new_tokens, jnp.int32)
      if min_new_tokens is None:
        min_new_tokens = jnp.full(len(index), self.min_new_tokens, jnp.int32)
    stop_state = self.stop_state
    return controls_lib.Controls(
        temperature=rows(self.temperature, jnp.float32),
        max_new_tokens=rows(self.max_new_tokens, jnp.int32),
        min_new_tokens=min_new_tokens,
        prefix=prefix,
        stop_state=None
        if stop_state is None
        else jnp.asarray(stop_state[index], jnp.int32),
    )


def check(
    target: loading.Loaded,
    count: int,
    *,
    max_new_tokens: int | Sequence[int],
    min_new_tokens: int | Sequence[int] = 0,
    temperature: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    prefix: str | Sequence[str] | Sequence[Sequence[int]] | None = None,
    stop: str | Sequence[str] = (),
    draft: loading.Loaded | None = None,
) -> Requests:
  """The requests of `count` sequences; arguments as of `generation.generate`.

  Raises:
    UserError: a value is out of range, or there is not one for each sequence;
      texts for a model without a vocabulary; a stop string that cannot occur.
  """
  numbers = check_numbers(
      count,
      max_new_tokens=max_new_tokens,
      min_new_tokens=min_new_tokens,
      temperature=temperature,
      seed=seed,
  )
  size = min(x.config.vocab_size for x in (target, draft or target))
  tokens = _prefixes(target, prefix, count, size)
  automaton = stop_automaton(target, stop)
  stop_state = None
  if automaton is not None and tokens is not None:
    # What a prefix adds to a text decides where its continuation begins.
    has_text = _has_text(target, tokens)
    stop_state = np.where(has_text, 0, int(automaton.start))
  return Requests(*numbers, tokens, automaton, stop_state)


def check_numbers(
    count: int,
    *,
    max_new_tokens: int | Sequence[int],
    min_new_tokens: int | Sequence[int] = 0,
    temperature: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
) -> tuple[Any, Any, Any, Any]:
  """The part of `check` that needs no model: numbers, or arrays [count]."""
  limit = _each('max_new_tokens', max_new_tokens, count, np.int64)
  minimum = _each('min_new_tokens', min_new_tokens, count, np.int64)
  heat = _each('temperature', temperature, count, np.float64)
  seeds = _each('seed', seed, count, np.int64)
  longest = decoding_lib.MAX_OUTPUT_LENGTH
  _refuse('max_new_tokens', limit, limit < 1, 'it must be at least 1')
  _refuse(
      'max_new_tokens', limit, limit > longest, f'it must be at most {longest}'
  )
  _refuse(
      'min_new_tokens',
      minimum,
      (minimum < 0) | (minimum > limit),
      'it must lie in [0, max_new_tokens]',
  )
  _refuse(
      'temperature',
      heat,
      np.logical_not((0.0 <= np.asarray(heat)) & (np.asarray(heat) <= 1e6)),
      f'it must lie in {decoding_lib.TEMPERATURES} (0 is greedy)',
  )
  heat = np.where(heat < decoding_lib.MIN_TEMPERATURE, 0.0, heat)
  heat = heat if heat.ndim else heat.item()
  _refuse(
      'seed',
      seeds,
      (seeds < 0) | (seeds >= 2**32),
      f'it must {check_lib.SEED_LIMIT}',
  )
  return limit, minimum, heat, seeds


def stop_automaton(
    target: loading.Loaded, stop: str | Sequence[str]
) -> stopping.Automaton | None:
  """The automaton of stop strings in the target's vocabulary, if there are any.

  Raises:
    UserError: the target has no vocabulary, or a string cannot occur.
  """
  strings = stop_strings(stop)
  if not strings:
    return None
  if target.vocabulary is None:
    raise errors.UserError(
        f'The model {target.name} has no vocabulary, so it cannot look for the'
        f' stop string {strings[0]!r}; load it with one, or use eos_ids.'
    )
  key = _ByIdentity(target.vocabulary)
  return _automaton(key, target.config.vocab_size, strings)


class _ByIdentity:
  """A vocabulary as a key: vocabularies compare but have no hash."""

  def __init__(self, vocabulary: Any):
    self.vocabulary = vocabulary

  def __eq__(self, other: Any) -> bool:
    return self.vocabulary is other.vocabulary

  def __hash__(self) -> int:
    return id(self.vocabulary)


@functools.lru_cache(maxsize=8)
def _automaton(
    key: _ByIdentity, size: int, strings: tuple[str, ...]
) -> stopping.Automaton:
  later, first = _surfaces(key)
  # Tokens beyond the vocabulary are padding and spell nothing.
  padding = max(size - len(later), 0)
  return stopping.automaton(
      strings, [*later, *[b''] * padding], [*first, *[None] * padding]
  )


@functools.lru_cache(maxsize=2)
def _surfaces(key: _ByIdentity) -> vocabulary_kinds.Surfaces:
  return vocabulary_kinds.surfaces(key.vocabulary)


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
  """The strings as a tuple.

  Raises:
    UserError: they are something else.
  """
  strings = (stop,) if isinstance(stop, str) else stop
  if not isinstance(strings, (tuple, list)):
    raise errors.UserError(
        f'stop is {stop!r}; give a text, or a list of texts.'
    )
  for string in strings:
    if not isinstance(string, str):
      raise errors.UserError(f'A stop string is {string!r}; give text.')
  return tuple(strings)


def _each(name: str, value: Any, count: int, dtype: Any) -> Any:
  """A number, or an array with one for each sequence."""
  try:
    array = np.asarray(value)
  except ValueError:  # lists of several lengths
    array = np.asarray(None)
  is_number = array.dtype.kind in ('iuf' if dtype is np.float64 else 'iu')
  if array.ndim > 1 or not (is_number or array.shape == (0,)):
    raise errors.UserError(
        f'{name} is {check_lib.shown(value)}; give a'
        f'{"" if dtype is np.float64 else " whole"} number, or one for each'
        ' input.'
    )
  if array.dtype.kind == 'u':  # what int64 cannot hold is too large anyway
    array = np.minimum(array, np.iinfo(np.int64).max)
  if array.ndim == 0:
    return array.astype(dtype).item()
  if len(array) != count:
    raise errors.UserError(
        f'{name} has {len(array)} values for {count} inputs; give one for each,'
        ' or a single number for all.'
    )
  return array.astype(dtype)


def _refuse(name: str, values: Any, is_wrong: Any, why: str) -> None:
  is_wrong = np.asarray(is_wrong, bool)
  if not is_wrong.any():
    return
  if is_wrong.ndim == 0:
    raise errors.UserError(f'{name} is {values}; {why}.')
  number = int(np.argmax(is_wrong))
  value = np.broadcast_to(values, is_wrong.shape)[number]
  raise errors.UserError(f'{name} is {value} for input {number}; {why}.')


def _prefixes(
    target: loading.Loaded, prefix: Any, count: int, size: int
) -> list[list[int]] | None:
  """The tokens of each sequence's prefix."""
  if prefix is None:
    return None
  if isinstance(prefix, str):
    prefix = [prefix] * count
  if not isinstance(prefix, Sequence | np.ndarray):
    raise errors.UserError(
        f'prefix is {check_lib.shown(prefix)}; give a text, or one text or list'
        ' of tokens for each input.'
    )
  prefix = list(prefix)
  if len(prefix) != count:
    raise errors.UserError(
        f'prefix has {len(prefix)} values for {count} inputs; give one for'
        ' each, or a single text for all.'
    )
  return [
      _prefix(target, one, number, size) for number, one in enumerate(prefix)
  ]


def _prefix(
    target: loading.Loaded, prefix: Any, number: int, size: int
) -> list[int]:
  """The tokens of one prefix, all below `size`."""
  if isinstance(prefix, str):
    if target.vocabulary is None:
      raise errors.UserError(
          f'The model {target.name} has no vocabulary, so it cannot read the'
          f' prefix {prefix!r}; give tokens.'
      )
    files.check_text(prefix, f'The prefix of input {number}')
    prefix = target.vocabulary.encode(prefix)
  try:
    tokens = np.asarray(prefix)
  except ValueError:  # lists of several lengths
    tokens = np.asarray(None)
  if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in 'iu'):
    raise errors.UserError(
        f'The prefix of input {number} is {prefix!r}; give a text or tokens.'
    )
  if ((tokens < 0) | (tokens >= size)).any():
    raise errors.UserError(
        f'The prefix of input {number} is {tokens.tolist()}; its tokens must'
        f' lie in [0, {size}).'
    )
  return tokens.astype(int).tolist()


def _has_text(target: loading.Loaded, prefix: list[list[int]]) -> np.ndarray:
  """bool[n]: the prefix of a sequence has text."""
  decode = target.vocabulary.decode
  is_text = lambda token: token != vocabulary_kinds.EOS
  return np.array([bool(decode([*filter(is_text, p)])) for p in prefix])
