"""Texts from files, one a line: JSON lines, TSV, parallel text, plain text.

Files are UTF-8, local or remote; a byte order mark and Windows line ends are
dropped. A line that cannot be read is an error that names file and line. Where
`skip` is true the reader yields None for it instead, so that the caller can
count what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import json
import os
from typing import TypeVar

from etils import epath

from distillspec_jax.core import errors

Pair = tuple[str, str]
Path = str | os.PathLike[str]
_T = TypeVar('_T')
_BOM = b'\xef\xbb\xbf'


class _BadLine(ValueError):
  """What is wrong with a line; completes the sentence 'FILE, line N ...'."""


def json_lines(
    path: Path, inputs: str | None, labels: str, skip: bool = False
) -> Iterator[Pair | None]:
  """The fields `inputs` (None: empty) and `labels` of each line's object."""

  def parse(line: str) -> Pair:
    values = _json_object(line)
    text = '' if inputs is None else _field(values, inputs)
    return text, _field(values, labels)

  return _parsed(_raw_lines(path), path, parse, skip)


def tab_separated(path: Path, skip: bool = False) -> Iterator[Pair | None]:
  """The two columns of each line."""

  def parse(line: str) -> Pair:
    columns = line.split('\t')
    if len(columns) != 2:
      raise _BadLine(f'has {len(columns)} columns, not 2')
    return columns[0], columns[1]

  return _parsed(_raw_lines(path), path, parse, skip)


def parallel(
    source: Path, translation: Path, skip: bool = False
) -> Iterator[Pair | None]:
  """Line i of one file with line i of the other; empty lines count."""
  left, right = (
      list(_parsed(_raw_lines(path), path, str, skip, keep_blank=True))
      for path in (source, translation)
  )
  if len(left) != len(right):
    raise errors.UserError(
        f'{source} has {len(left)} lines and {translation} has {len(right)};'
        ' parallel files must have a line for each line.'
    )
  for a, b in zip(left, right):
    yield None if a is None or b is None else (a, b)


def texts(path: Path, field: str) -> Iterator[str]:
  """Each line of a file, empty ones too; of a .jsonl file its `field`."""
  parse = str
  if os.fspath(path).endswith('.jsonl'):
    parse = lambda line: _field(_json_object(line), field)
  return _parsed(_raw_lines(path), path, parse, keep_blank=True)


def lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
  """Each line of an open binary stream, e.g. standard input, empty ones too."""
  return _parsed(stream, name, str, keep_blank=True)


def check_text(text: str, name: str) -> None:
  """Raises UserError for lone surrogates, which UTF-8 cannot express.

  Python makes them of command-line bytes that are not UTF-8, and JSON may hold
  them escaped.
  """
  problem = _surrogate(text)
  if problem:
    raise errors.UserError(f'{name} {problem}; give it as UTF-8.')


def _json_object(line: str) -> dict:
  try:
    values = json.loads(line)
  except json.JSONDecodeError as error:
    raise _BadLine(f'is not JSON ({error})') from error
  except (ValueError, RecursionError) as error:  # Python's own limits
    raise _BadLine(
        'has an integer of over 4,300 digits, or nesting too deep to read'
    ) from error
  if not isinstance(values, dict):
    raise _BadLine('is JSON, but not an object')
  return values


def _field(values: dict, name: str) -> str:
  if name not in values:
    raise _BadLine(f'has no field {name!r}; it has {sorted(values)}')
  text = values[name]
  if not isinstance(text, str):
    raise _BadLine(f'has a field {name!r} that is not a string')
  problem = _surrogate(text)
  if problem:
    raise _BadLine(f'has a field {name!r} that {problem}')
  return text


def _surrogate(text: str) -> str:
  """Where half of a surrogate pair stands, or '' if there is none."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    where = f'({text[error.start]!a} at character {error.start})'
    return f'is not Unicode {where}'
  return ''


def _raw_lines(path: Path) -> Iterator[bytes]:
  try:
    with epath.Path(path).expanduser().open('rb') as file:
      yield from file
  except (OSError, ImportError) as error:  # buckets need a package
    reason = getattr(error, 'strerror', None) or error
    raise errors.UserError(
        f'The file {path} cannot be read: {reason}.'
    ) from error


def _parsed(
    raw: Iterable[bytes],
    name: Path,
    parse: Callable[[str], _T],
    skip: bool = False,
    keep_blank: bool = False,
) -> Iterator[_T | None]:
  """What `parse` makes of each line, or None for a bad line if `skip`."""
  for number, line in enumerate(raw, start=1):
    if number == 1:
      line = line.removeprefix(_BOM)
    line = line.removesuffix(b'\n').removesuffix(b'\r')
    if not keep_blank and not line.strip():
      continue
    try:
      parsed = parse(_decoded(line))
    except _BadLine as problem:
      if not skip:
        raise errors.UserError(
            f"{name}, line {number} {problem}. Fix the line; a task's"
            " on_bad_line = 'skip' leaves such lines out and counts them."
        ) from problem
      parsed = None
    yield parsed


def _decoded(line: bytes) -> str:
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise _BadLine(
        f'is not UTF-8 ({error.reason} at byte {error.start}); convert it, e.g.'
        ' with iconv'
    ) from error
