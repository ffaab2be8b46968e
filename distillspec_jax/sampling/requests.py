"""What is asked of each row, checked on the host before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import stopping


@dataclasses.dataclass(frozen=True)
class Requests:
  """Settings of rows; those that all rows share are numbers.

  Attributes:
    max_new_tokens: a number, or one a row.
    min_new_tokens: likewise.
    temperature: likewise.
    seed: likewise.
    prefix: tokens of each row, or None.
    stop: automaton of the stop strings, or None.
    begun: bool[B] whether a row's prefix has text; None without either.
  """

  max_new_tokens: int | np.ndarray
  min_new_tokens: int | np.ndarray
  temperature: float | np.ndarray
  seed: int | np.ndarray
  prefix: list[list[int]] | None
  stop: stopping.Automaton | None
  begun: np.ndarray | None = None

  @property
  def longest(self) -> int:
    return int(np.max(self.max_new_tokens))

  def controls(self, numbers: Sequence[int]) -> controls_lib.Controls:
    """Of the rows with these numbers."""
    numbers = np.asarray(numbers)

    def of_rows(values, dtype):
      return (
          None if np.ndim(values) == 0 else jnp.asarray(values[numbers], dtype)
      )

    prefix = segments = None
    if self.prefix is not None:
      size = batching.width(max(map(len, self.prefix)))
      prefix, segments = batching.pad([self.prefix[i] for i in numbers], size)
    least, stop = None, self.stop
    if np.any(self.min_new_tokens):
      least = self.min_new_tokens
      least = least if np.ndim(least) == 0 else least[numbers]
      least = jnp.full(len(numbers), least, jnp.int32)
    if self.begun is not None:
      stop = stop.after(self.begun[numbers])
    return controls_lib.Controls(
        temperature=of_rows(self.temperature, jnp.float32),
        max_new_tokens=of_rows(self.max_new_tokens, jnp.int32),
        min_new_tokens=least,
        prefix=prefix,
        prefix_segments=segments,
        stop=stop,
    )


def check(
    target: loading.Model,
    count: int,
    *,
    max_new_tokens: int | Sequence[int],
    min_new_tokens: int | Sequence[int] = 0,
    temperature: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    prefix: str | Sequence[str] | Sequence[Sequence[int]] | None = None,
    stop: str | Sequence[str] = (),
) -> Requests:
  """The requests of `count` rows; arguments as of `generation.generate`.

  Raises:
    UserError: a value is out of range, or there is not one for each row; texts
      for a model without a vocabulary; a stop string that cannot come.
  """
  most, least, warmth, seeds = check_numbers(
      count,
      max_new_tokens=max_new_tokens,
      min_new_tokens=min_new_tokens,
      temperature=temperature,
      seed=seed,
  )
  prefix = _prefixes(target, prefix, count)
  return Requests(
      max_new_tokens=most,
      min_new_tokens=least,
      temperature=warmth,
      seed=seeds,
      prefix=prefix,
      stop=stop_automaton(target, stop),
      begun=_begun(target, prefix) if stop_strings(stop) else None,
  )


def check_numbers(
    count: int,
    *,
    max_new_tokens: int | Sequence[int],
    min_new_tokens: int | Sequence[int] = 0,
    temperature: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
) -> tuple[Any, Any, Any, Any]:
  """The arguments, each a number or an array with one a row.

  Raises:
    UserError: a value is out of range, or there is not one for each row.
  """
  most = _each('max_new_tokens', max_new_tokens, count, np.int64)
  least = _each('min_new_tokens', min_new_tokens, count, np.int64)
  warmth = _each('temperature', temperature, count, np.float64)
  seeds = _each('seed', seed, count, np.int64)
  _refuse('max_new_tokens', most, lambda x: x < 1, 'it must be at least 1')
  _refuse(
      'min_new_tokens',
      least,
      lambda x: (x < 0) | (x > most),
      'it must lie in [0, max_new_tokens]',
  )
  _refuse(
      'temperature',
      warmth,
      lambda x: ~(x >= 0.0),
      'it must be at least 0 (greedy)',
  )
  _refuse(
      'seed',
      seeds,
      lambda x: (x < 0) | (x >= 2**32),
      'it must lie in [0, 2**32): of other numbers only the last 32 bits are'
      ' used',
  )
  return most, least, warmth, seeds


def stop_automaton(
    target: loading.Model, stop: str | Sequence[str]
) -> stopping.Automaton | None:
  """The automaton of stop strings in the target's vocabulary, if there are any.

  Raises:
    UserError: the target has no vocabulary, or a string cannot come.
  """
  strings = stop_strings(stop)
  if not strings:
    return None
  if target.vocabulary is None:
    raise errors.UserError(
        f'The model {target.name} has no vocabulary, so it cannot look for the'
        f' stop string {strings[0]!r}; load it with one, or end rows by'
        ' eos_ids.'
    )
  return _automaton(_Own(target.vocabulary), target.config.vocab_size, strings)


class _Own:
  """A vocabulary as a key: vocabularies compare but have no hash."""

  def __init__(self, vocabulary: Any):
    self.vocabulary = vocabulary

  def __eq__(self, other: Any) -> bool:
    return self.vocabulary is other.vocabulary

  def __hash__(self) -> int:
    return id(self.vocabulary)


@functools.lru_cache(maxsize=8)
def _automaton(
    own: _Own, size: int, strings: tuple[str, ...]
) -> stopping.Automaton:
  later, first = _surfaces(own)
  # Rows beyond the vocabulary are padding and spell nothing.
  padding = max(size - len(later), 0)
  return stopping.automaton(
      strings, [*later, *[b''] * padding], [*first, *[None] * padding]
  )


@functools.lru_cache(maxsize=2)
def _surfaces(own: _Own) -> vocabulary_kinds.Surfaces:
  return vocabulary_kinds.surfaces(own.vocabulary)


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
  """A number, or an array with one a row."""
  try:
    found = np.asarray(value)
  except ValueError:  # rows of several lengths
    found = np.asarray(None)
  is_number = found.dtype.kind in ('iuf' if dtype is np.float64 else 'iu')
  if found.ndim > 1 or not (is_number or found.shape == (0,)):
    raise errors.UserError(
        f'{name} is {value!r}; give a number, or one for each row.'
    )
  if found.ndim == 0:
    return found.astype(dtype).item()
  if len(found) != count:
    raise errors.UserError(
        f'{name} has {len(found)} values for {count} inputs; give one for each,'
        ' or a single number for all.'
    )
  return found.astype(dtype)


def _refuse(
    name: str, values: Any, is_wrong: Callable[[np.ndarray], Any], why: str
) -> None:
  wrong = np.asarray(is_wrong(np.asarray(values)))
  if not wrong.any():
    return
  if wrong.ndim == 0:
    raise errors.UserError(f'{name} is {values}; {why}.')
  row = int(np.argmax(wrong))
  value = np.broadcast_to(values, wrong.shape)[row]
  raise errors.UserError(f'{name} is {value} in row {row}; {why}.')


def _prefixes(
    target: loading.Model, prefix: Any, count: int
) -> list[list[int]] | None:
  """The tokens of each row's prefix."""
  if prefix is None:
    return None
  if isinstance(prefix, str):
    prefix = [prefix] * count
  prefix = list(prefix)
  if len(prefix) != count:
    raise errors.UserError(
        f'prefix has {len(prefix)} values for {count} inputs; give one for'
        ' each, or a single text for all.'
    )
  return [_prefix(target, one, row) for row, one in enumerate(prefix)]


def _prefix(target: loading.Model, one: Any, row: int) -> list[int]:
  """The tokens of one prefix."""
  if isinstance(one, str):
    if target.vocabulary is None:
      raise errors.UserError(
          f'The model {target.name} has no vocabulary, so it cannot read the'
          f' prefix {one!r}; give tokens.'
      )
    one = target.vocabulary.encode(one)
  size = target.config.vocab_size
  tokens = np.asarray(one)
  if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in 'iu'):
    raise errors.UserError(
        f'The prefix of row {row} is {one!r}; give a text or tokens.'
    )
  if ((tokens < 0) | (tokens >= size)).any():
    raise errors.UserError(
        f'The prefix of row {row} is {tokens.tolist()}; its tokens must lie in'
        f' [0, {size}).'
    )
  return tokens.astype(int).tolist()


def _begun(
    target: loading.Model, prefix: list[list[int]] | None
) -> np.ndarray | None:
  """bool[B]: the prefix of a row has text."""
  if prefix is None or target.vocabulary is None:
    return None
  decode = target.vocabulary.decode
  is_text = lambda token: token != vocabulary_kinds.EOS
  return np.array([bool(decode([*filter(is_text, row)])) for row in prefix])
