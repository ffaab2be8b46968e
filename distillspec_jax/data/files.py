"""Pairs of texts from the user's own files: JSON lines, TSV, parallel lines.

Every reader names file and line in its errors. A line that cannot be read is
an error, unless it is to be skipped; then it is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
import pathlib

from distillspec_jax.core import errors

Pair = tuple[str, str]


class Skipped:
  """Counts the lines that a reader left out."""

  def __init__(self):
    self.lines = 0


def json_lines(
    path: str | os.PathLike[str],
    inputs: str | None,
    labels: str,
    skip: bool,
    skipped: Skipped,
) -> Iterator[Pair]:
  """Fields `inputs` (None: empty) and `labels` of each line."""
  for number, line in _lines(path):
    if not line.strip():
      continue
    problem = None
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      row, problem = {}, f'is not JSON ({error.msg})'
    if problem is None and not isinstance(row, dict):
      row, problem = {}, 'is JSON, but not an object'
    for field in (inputs, labels):
      if problem is None and field is not None:
        if field not in row:
          problem = f'has no field {field!r}; it has {sorted(row)}'
        elif not isinstance(row[field], str):
          problem = f'has a field {field!r} that is not a string'
    if problem is None:
      yield '' if inputs is None else row[inputs], row[labels]
    else:
      _bad_line(path, number, problem, skip, skipped)


def tab_separated(
    path: str | os.PathLike[str], skip: bool, skipped: Skipped
) -> Iterator[Pair]:
  """First and second column of each line."""
  for number, line in _lines(path):
    if not line.strip():
      continue
    columns = line.split('\t')
    if len(columns) == 2:
      yield columns[0], columns[1]
    else:
      _bad_line(
          path, number, f'has {len(columns)} columns, not 2', skip, skipped
      )


def parallel(
    source: str | os.PathLike[str], translation: str | os.PathLike[str]
) -> Iterator[Pair]:
  """Line i of one file with line i of the other."""
  left = [line for _, line in _lines(source)]
  right = [line for _, line in _lines(translation)]
  if len(left) != len(right):
    raise errors.UserError(
        f'{source} has {len(left)} lines and {translation} has {len(right)};'
        ' parallel files must have a line for each line.'
    )
  yield from zip(left, right)


def texts(path: str | os.PathLike[str], field: str) -> Iterator[str]:
  """Each line of a file; of a .jsonl file the `field` of each line."""
  if os.fspath(path).endswith('.jsonl'):
    for _, text in json_lines(path, None, field, False, Skipped()):
      yield text
  else:
    for _, line in _lines(path):
      yield line


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
  path = pathlib.Path(path)
  try:
    with path.open(encoding='utf-8', newline='\n') as file:
      for number, line in enumerate(file, start=1):
        yield number, line.rstrip('\r\n')
  except OSError as error:
    raise errors.UserError(
        f'The data file {path} cannot be read: {error.strerror}.'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
        f'The data file {path} is not UTF-8 text ({error}).'
    ) from error


def _bad_line(path, number, problem, skip, skipped) -> None:
  if not skip:
    raise errors.UserError(
        f'{path}, line {number} {problem}. Mend the line, or set'
        " on_bad_line = 'skip' to leave such lines out and count them."
    )
  skipped.lines += 1
