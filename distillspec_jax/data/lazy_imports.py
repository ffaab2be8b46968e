"""Packages that are slow to import or optional, and libraries kept quiet."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib
import os
import sys
from typing import Any

from distillspec_jax.core import errors


def import_seqio() -> Any:
  """seqio, without the start-up messages of TensorFlow.

  Raises:
    UserError: it is not installed.
  """
  return _imported('seqio', "Tasks of seqio's registry need seqio", 'seqio')


def import_tfds() -> Any:
  """TensorFlow Datasets, likewise.

  Raises:
    UserError: it is not installed.
  """
  what = 'Data sets of TFDS need tensorflow_datasets'
  return _imported('tensorflow_datasets', what, 'seqio')


def import_pyarrow() -> Any:
  """pyarrow.

  Raises:
    UserError: it is not installed.
  """
  what = 'Folders of Hugging Face datasets need pyarrow'
  return _imported('pyarrow', what, 'datasets')


def _imported(name: str, what: str, extra: str) -> Any:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    with quiet():
      return importlib.import_module(name)
  except ImportError as error:
    raise errors.UserError(
        f'{what}, which cannot be imported ({error}). In a checkout:'
        f" pip install -e '.[{extra}]'."
    ) from error


def import_sacrebleu() -> Any:
  """sacrebleu's metrics: BLEU and CHRF.

  Raises:
    UserError: it is not installed.
  """
  return _import_for_metrics('sacrebleu.metrics', 'BLEU and chrF')


def import_rouge_scorer() -> Any:
  """rouge-score's `rouge_scorer`.

  Raises:
    UserError: it is not installed.
  """
  return _import_for_metrics('rouge_score.rouge_scorer', 'ROUGE')


def _import_for_metrics(module: str, metrics: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise errors.UserError(
        f'The metrics {metrics} need a package that cannot be imported'
        f" ({error}). In a checkout: pip install -e '.[metrics]'."
    ) from error


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
