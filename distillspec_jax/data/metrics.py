"""Task quality: how good answers are, one number an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import re

import numpy as np

from distillspec_jax.core import errors

_NUMBER = re.compile(r'####\s*(-?[\d,.]*\d)')


def exact_match(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where the answer is the label but for outer blanks."""
  return np.array(
      [float(a.strip() == b.strip()) for a, b in zip(answers, labels)]
  )


def final_number(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
  """float64[n]: 1 where the number after '####' is the label's."""

  def number(text):
    found = _NUMBER.search(text)
    return found.group(1).replace(',', '') if found else None

  return np.array(
      [
          float(number(a) is not None and number(a) == number(b))
          for a, b in zip(answers, labels)
      ]
  )


def named(name: str) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
  """The metric called `name`.

  Raises:
    UserError: unknown name.
  """
  known = {'exact_match': exact_match, 'final_number': final_number}
  if name not in known:
    raise errors.UserError(
        f'There is no metric called {name!r}; known are {", ".join(known)}.'
    )
  return known[name]
