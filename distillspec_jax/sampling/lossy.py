"""The lossy rules by name: what `lenience` may be.

  ('linear' | 'square' | 'exponential', epsilon[, residual])  see `lenient`
  ('typical'[, epsilon[, delta]])                             see `typical`
  ('simulated', rate)                                         see `simulated`

None of them has the target's law. Lossless rules are chosen by `verification`.
"""

from __future__ import annotations

from collections.abc import Sequence
import numbers

from distillspec_jax.core import errors
from distillspec_jax.sampling import lenient
from distillspec_jax.sampling import simulated
from distillspec_jax.sampling import typical

Rule = lenient.Lenience | typical.Typical | simulated.Simulated
NAMES = (*lenient.FUNCTIONS, 'typical', 'simulated')


def parse(lenience: Sequence | Rule) -> Rule:
  """The rule of a tuple (name, numbers...).

  Raises:
    UserError: there is no such rule, or a number is out of range.
  """
  if isinstance(lenience, typical.Typical | simulated.Simulated):
    return lenience
  is_tuple = isinstance(lenience, (tuple, list)) and len(lenience)
  name = lenience[0] if is_tuple else lenience
  if name == 'typical':
    return _typical(lenience)
  if name == 'simulated':
    return _simulated(lenience)
  if name not in NAMES:
    raise errors.UserError(
        f'The lenience function is {name!r}; it must be one of'
        f" {', '.join(NAMES)}, as in ('linear', 0.5)."
    )
  return lenient.check(tuple(lenience))


def describe(rule: Rule) -> list:
  """The rule as `parse` takes it, for results."""
  if isinstance(rule, typical.Typical):
    return ['typical', *rule]
  if isinstance(rule, simulated.Simulated):
    return ['simulated', *rule]
  return list(rule)


def _typical(values: Sequence) -> typical.Typical:
  if len(values) > 3:
    raise errors.UserError(
        f"lenience is {tuple(values)!r}; give ('typical', epsilon, delta)."
    )
  found = typical.Typical(*values[1:])
  for name, value, most in zip(found._fields, found, (1.0, float('inf'))):
    if not is_number(value) or not 0.0 < value < most:
      raise errors.UserError(
          f"lenience's {name} is {value!r}; it must be above 0 and below"
          f' {most:g}.'
      )
  return found


def _simulated(values: Sequence) -> simulated.Simulated:
  rate = values[1] if len(values) == 2 else None
  if not is_number(rate) or not 0.0 <= rate <= 1.0:
    raise errors.UserError(
        f"lenience is {tuple(values)!r}; give ('simulated', rate) with a rate"
        ' in [0, 1].'
    )
  return simulated.Simulated(float(rate))


def is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)
