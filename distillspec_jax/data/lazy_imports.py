"""seqio and TensorFlow, imported when first used and without their messages."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import sys
from typing import Any


def import_seqio() -> Any:
  """seqio, without the start-up messages of TensorFlow."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with quiet():
    import seqio
  return seqio


def import_tensorflow() -> Any:
  """TensorFlow, likewise."""
  import_seqio()
  import tensorflow

  return tensorflow


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps libraries' own log lines off the terminal; errors are raised still.

  TensorFlow and SentencePiece write to the file descriptor itself, which is
  pointed elsewhere meanwhile.
  """
  sys.stderr.flush()
  saved = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(nowhere)
