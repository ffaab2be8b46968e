"""The file that `decode --out` writes: one JSON line per answer, resumable."""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.core import sources


class Answer(NamedTuple):
  """What one input became."""

  text: str
  tokens: list[int]
  statistics: dict[str, Any]


def line(
    number: int, text: str, answer: Answer, settings: dict[str, Any]
) -> str:
  """The line of the answer to input `number`."""
  values = {
      'index': number,
      'input': text,
      **answer._asdict(),
      'settings': settings,
  }
  return json.dumps(values, ensure_ascii=False)


def check_writable(file: str) -> pathlib.Path:
  """The path of a file, to which answers can be added, or UserError."""
  if '://' in file:
    raise errors.UserError(
        f'--out is {file}, but lines can be added to local files only; name'
        ' one, and copy it when it is done.'
    )
  path = pathlib.Path(sources.expanded(file))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open('ab').close()
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be written to: {error.strerror}. Name another file.'
    ) from error
  return path


def resume(file: str, inputs: Sequence[str], settings: dict[str, Any]) -> int:
  """The number of answers in a file; a truncated last line is removed.

  Args:
    file: created if it is absent.
    inputs: that the answers must be to.
    settings: that they must have been decoded with.

  Raises:
    UserError: there are other answers in it, or it cannot be written to.
  """
  path = check_writable(file)
  try:
    data = path.read_bytes()
    complete = data[: data.rfind(b'\n') + 1]
    for number, text in enumerate(complete.splitlines()):
      problem = _difference(text, number, inputs, settings)
      if problem is not None:
        raise errors.UserError(
            f'{path}, line {number + 1} {problem}; remove the file, or name'
            ' another.'
        )
    if len(complete) < len(data):
      os.truncate(path, len(complete))
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be written to: {error.strerror}. Name another file.'
    ) from error
  return complete.count(b'\n')


def _difference(
    text: bytes, number: int, inputs: Sequence[str], settings: dict[str, Any]
) -> str | None:
  """What a line is, unless it is the answer to input `number`."""
  try:
    value = json.loads(text)
    index, input_text = value['index'], value['input']
    old = dict(value['settings'])
  except (ValueError, KeyError, TypeError):
    return 'is not an answer of decode'
  if number >= len(inputs) or (index, input_text) != (number, inputs[number]):
    return 'is an answer to another input'
  # A setting that an older file does not have is None.
  names = [
      key for key in {**settings, **old} if old.get(key) != settings.get(key)
  ]
  return f'was decoded with another {" and ".join(names)}' if names else None
