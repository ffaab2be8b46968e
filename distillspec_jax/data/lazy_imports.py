"""Packages that are slow to import or optional, and libraries kept quiet."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import sys
from typing import Any

from distillspec_jax.core import errors


def import_seqio() -> Any:
  """seqio, without the start-up messages of TensorFlow.

  Raises:
    UserError: it is not installed.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    with quiet():
      import seqio
  except ImportError as error:
    raise errors.UserError(
        f"Tasks of seqio's registry need seqio, which cannot be imported"
        f" ({error}). In a checkout: pip install -e '.[seqio]'."
    ) from error
  return seqio


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps the log lines of libraries off the terminal; errors still raise.

  TensorFlow and SentencePiece write to the file descriptor itself, which is
  redirected meanwhile.
  """
  sys.stderr.flush()
  saved = os.dup(2)
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(null)
