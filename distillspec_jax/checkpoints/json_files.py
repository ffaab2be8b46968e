"""Reading JSON that others wrote: configurations, indices, headers."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from typing import Any

from distillspec_jax.core import errors


@contextlib.contextmanager
def parsing(
    what: Any, remedy: str = 'copy or download it again'
) -> Iterator[None]:
  """Within it, text that is not JSON or not as expected is a UserError."""
  try:
    yield
  except errors.UserError:
    raise
  except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError,
  ) as error:  # fmt: skip
    raise errors.UserError(
        f'{what} is damaged ({error!r}); {remedy}.'
    ) from error
