"""The checks that recur: each raises an error that names value and limit.

  check.at_least(1, batch_size=batch_size, repeats=repeats)
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

from distillspec_jax.core import errors


def at_least(
    limit: float, *, owner: str = '', hint: str = '', **values: Any
) -> None:
  """Raises UserError unless each value is a number of at least `limit`.

  Args:
    limit: the smallest value that is allowed.
    owner: of the settings, e.g. a class.
    hint: what the limit means, or what to do.
    **values: name -> value.
  """
  for name, value in values.items():
    if not _is_number(value) or not value >= limit:
      _refuse(owner, name, value, f'be at least {limit:g}', hint)


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


def one_of(
    choices: Collection[Any], *, owner: str = '', hint: str = '', **values: Any
) -> None:
  """Raises UserError unless each value is one of the choices."""
  for name, value in values.items():
    if value not in choices:
      listed = ', '.join(map(repr, choices))
      _refuse(owner, name, value, f'be one of {listed}', hint)


def _is_number(value: Any) -> bool:
  return (
      isinstance(value, numbers.Real)
      and not isinstance(value, bool)
      and not math.isnan(value)
  )


def _refuse(owner: str, name: str, value: Any, limit: str, hint: str) -> None:
  name = f'{owner}.{name}' if owner else name
  hint = f' ({hint})' if hint else ''
  raise errors.UserError(f'{name} is {value!r}; it must {limit}{hint}.')
