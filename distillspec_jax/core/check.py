"""The checks that recur: each raises an error that names value and limit.

  check.at_least(1, batch_size=batch_size, repeats=repeats)  # whole numbers
  check.in_interval('(0, 1]', top_p=top_p, hint='1 allows all tokens')
  check.one_of(('float32', 'bfloat16'), owner='T5Config', dtype=dtype)

Names of the values are the keywords, so that they are those of the caller's own
arguments; `owner` is put before them.
"""

from __future__ import annotations

from collections.abc import Collection
import math
import numbers
from typing import Any

import numpy as np

from distillspec_jax.core import errors

SEED_LIMIT = 'lie in [0, 2**32): only 32 bits of a seed are used'
MAX_ROWS = 2**16  # of a batch
MAX_TOKENS = 2**17  # of a sequence
_MAX_VALUE = 10**12


def at_least(
    limit: int,
    *,
    owner: str = '',
    hint: str = '',
    max_value: int = _MAX_VALUE,
    **values: Any,
) -> None:
  """Raises UserError unless each value is a whole number in [limit, max_value].

  Args:
    limit: the smallest value that is allowed.
    owner: of the settings, e.g. a class.
    hint: what the limit means, or what to do.
    max_value: the largest value; more would only run out of memory or time.
    **values: name -> value.
  """
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
      _refuse(owner, name, value, f'be a whole number, at least {limit}', hint)
    if value < limit:
      _refuse(owner, name, value, f'be at least {limit}', hint)
    if value > max_value:
      _refuse(owner, name, value, f'be at most {max_value}', hint)


def seed(**values: Any) -> None:
  """Raises UserError unless each value is a seed."""
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or not 0 <= int(value) < 2**32:
      _refuse('', name, value, SEED_LIMIT, '')


def in_interval(
    interval: str, *, owner: str = '', hint: str = '', **values: Any
) -> None:
  """Raises UserError unless each value is a number in the interval.

  Args:
    interval: '[0, 1]', or with '(' or ')' where the end does not belong to it;
      an end may be 'inf'.
    owner: as in `at_least`.
    hint: likewise.
    **values: name -> value.
  """
  low, high = (float(end) for end in interval[1:-1].split(','))
  for name, value in values.items():
    inside = _is_number(value) and low <= value <= high
    if inside and value == low and interval[0] == '(':
      inside = False
    if inside and value == high and interval[-1] == ')':
      inside = False
    if not inside:
      _refuse(owner, name, value, f'lie in {interval}', hint)


def text(**values: Any) -> None:
  """Raises UserError unless each value is a string."""
  for name, value in values.items():
    if not isinstance(value, str):
      _refuse('', name, value, 'be a text', '')


def one_of(
    choices: Collection[Any], *, owner: str = '', hint: str = '', **values: Any
) -> None:
  """Raises UserError unless each value is one of the choices."""
  for name, value in values.items():
    try:
      is_choice = value in choices
    except (TypeError, ValueError):  # what has no hash, or arrays
      is_choice = False
    if not is_choice:
      listed = ', '.join(map(repr, choices))
      _refuse(owner, name, value, f'be one of {listed}', hint)


def distinct(*, owner: str = '', **values: Collection[Any]) -> None:
  """Raises UserError unless the items of each collection all differ."""
  for name, items in values.items():
    items = list(items)
    for item in items:
      if items.count(item) > 1:
        limit = f'have each item once, {shown(item)} too'
        _refuse(owner, name, items, limit, '')


def shown(value: Any) -> str:
  """The value for a message, cut short where it is long."""
  try:
    text = repr(value)
  except ValueError:  # Python writes integers of up to 4,300 digits
    return 'an integer of thousands of digits'
  return text if len(text) <= 200 else f'{text[:200]}...'


def _is_number(value: Any) -> bool:
  is_real = isinstance(value, numbers.Integral | float | np.floating)
  if not is_real or isinstance(value, bool):
    return False
  try:
    return not math.isnan(float(value))
  except OverflowError:
    return False


def _refuse(owner: str, name: str, value: Any, limit: str, hint: str) -> None:
  name = f'{owner}.{name}' if owner else name
  hint = f' ({hint})' if hint else ''
  raise errors.UserError(f'{name} is {shown(value)}; it must {limit}{hint}.')
