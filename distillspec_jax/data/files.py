"""Texts from files, one a line: JSON lines, TSV, parallel text, plain text.

Files are UTF-8, local or remote, and compressed where their name ends in .gz; a
byte order mark and Windows line ends are dropped. A line that cannot be read is
an error that names file and line. Where `skip` is true the reader yields None
for it instead, so that the caller can count what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import gzip
import io
import itertools
import json
import os
from typing import Any, BinaryIO, TypeVar
import zlib

from etils import epath

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import sources

Pair = tuple[str, str]
Path = str | os.PathLike[str]
_T = TypeVar('_T')
_BOM = b'\xef\xbb\xbf'
_MAX_LINE = 2**26  # bytes; a file without line ends would fill the memory
_SKIP = "; a task's on_bad_line = 'skip' leaves such lines out and counts them"


class _BadLine(ValueError):
  """What is wrong with a line; completes the sentence 'FILE, line N ...'."""


def json_lines(
    path: Path,
    inputs: str | None,
    labels: str,
    skip: bool = False,
    owner: str = '',
) -> Iterator[Pair | None]:
  """The fields `inputs` (None: empty) and `labels` of each line's object.

  Args:
    path: of the file.
    inputs: a field.
    labels: a field.
    skip: yields None for a line that cannot be read.
    owner: of the settings `inputs` and `labels`, for messages.
  """

  def parse(line: str) -> Pair:
    values = _json_object(line)
    setting = lambda name: f'--gin.{owner}.{name}' if owner else ''
    text = '' if inputs is None else _field(values, inputs, setting('inputs'))
    return text, _field(values, labels, setting('labels'))

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
      _parsed(_raw_lines(path), path, str, skip, keep_blank=True)
      for path in (source, translation)
  )
  missing, number = object(), 0
  for pair in itertools.zip_longest(left, right, fillvalue=missing):
    if missing in pair:
      short, long = source, translation
      if pair[1] is missing:
        short, long = long, short
      raise errors.UserError(
          f'{short} has {number} lines and {long} has more; parallel files must'
          ' have a line for each line.'
      )
    number += 1
    yield None if None in pair else pair


def plain_text(
    path: Path, skip: bool = False, keep_blank: bool = False
) -> Iterator[str | None]:
  """Each line of a file, without empty ones unless `keep_blank`."""
  return _parsed(_raw_lines(path), path, str, skip, keep_blank)


def matching(paths: Path | Sequence[Path]) -> list[str]:
  """The files that a path, a pattern such as 'train-*.gz', or several name.

  Raises:
    UserError: no file matches a pattern.
  """
  if isinstance(paths, tuple | list):
    return [file for path in paths for file in matching(path)]
  text = sources.expanded(paths)
  if not set('*?[') & set(text) or os.path.exists(text):
    return [os.fspath(paths)]
  fixed = text[: min(text.find(c) for c in '*?[' if c in text)]
  folder, slash, _ = fixed.rpartition('/')
  folder = folder + slash if slash else '.'
  pattern = text[len(folder) :] if slash else text
  try:
    found = sorted(map(str, epath.Path(folder).glob(pattern)))
  except Exception as error:  # of many kinds for a bucket
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(f'{text} cannot be searched: {reason}') from error
  if not found:
    raise errors.UserError(f'No file matches {text}.')
  return found


def texts(path: Path, field: str, setting: str = '--field') -> Iterator[str]:
  """Each line of a file, empty ones too; of a .jsonl file its `field`.

  Args:
    path: of the file.
    field: of each object.
    setting: that chooses the field, for messages.
  """
  parse = str
  if os.fspath(path).removesuffix('.gz').endswith('.jsonl'):
    parse = lambda line: _field(_json_object(line), field, setting)
  lines = _raw_lines(path)
  return _parsed(lines, path, parse, keep_blank=True, remedy='')


def lines(stream: BinaryIO, name: str) -> Iterator[str]:
  """Each line of an open binary stream, e.g. standard input, empty ones too."""
  return _parsed(_bounded(stream), name, str, keep_blank=True, remedy='')


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


def _field(values: dict[str, Any], name: str, setting: str) -> str:
  if name not in values:
    has = check.shown(sorted(values))
    given = [key for key in values if isinstance(values[key], str)]
    if setting and given:
      # The input usually comes before the label.
      near = given[-1] if setting.endswith('labels') else given[0]
      has += f'. {setting} names the field, as in {setting}={near}'
    raise _BadLine(f'has no field {name!r}; it has {has}')
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
  number = 0
  try:
    file = epath.Path(sources.expanded(path))
    sources.check_regular(file)
    with file.open('rb') as stream:
      if os.fspath(path).endswith('.gz'):
        stream = gzip.open(stream)
      elif not isinstance(stream, io.BufferedIOBase):
        stream = io.BufferedReader(_Raw(stream))
      for line in _bounded(stream):
        number += 1
        yield line
  except Exception as error:
    # Buckets need a package, and raise errors of many kinds; damaged .gz files
    # raise the last two.
    known = (OSError, ImportError, EOFError, zlib.error)
    is_remote = '://' in os.fspath(path)
    if isinstance(error, errors.UserError) or not (
        is_remote or isinstance(error, known)
    ):
      raise
    reason = ' '.join(str(getattr(error, 'strerror', None) or error).split())
    after = f' after line {number}' if number else ''
    raise errors.UserError(
        f'The file {path} cannot be read{after}: {reason[:200].rstrip(".")}.'
    ) from error


class _Raw(io.RawIOBase):
  """A stream with `read` alone, as TensorFlow opens files in buckets."""

  def __init__(self, stream: Any):
    self._stream = stream

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    data = self._stream.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _bounded(stream: BinaryIO) -> Iterator[bytes]:
  """Each line, of the longest ones the beginning."""
  while line := stream.readline(_MAX_LINE + 1):
    rest = line
    while len(rest) > _MAX_LINE and not rest.endswith(b'\n'):
      rest = stream.readline(_MAX_LINE + 1)
    yield line


def _parsed(
    raw: Iterable[bytes],
    name: Path,
    parse: Callable[[str], _T],
    skip: bool = False,
    keep_blank: bool = False,
    remedy: str = _SKIP,
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
            f'{name}, line {number} {problem}. Fix the line{remedy}.'
        ) from problem
      parsed = None
    yield parsed


def _decoded(line: bytes) -> str:
  if len(line) > _MAX_LINE:
    raise _BadLine(f'has more than {_MAX_LINE} bytes')
  if line.startswith(b'\x1f\x8b'):
    raise _BadLine('is compressed; give the file a name that ends in .gz')
  if line.startswith((b'\xff\xfe', b'\xfe\xff')) or b'\0' in line:
    raise _BadLine(
        'has bytes of UTF-16, not UTF-8, or no text; convert it, e.g. with'
        ' iconv'
    )
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise _BadLine(
        f'is not UTF-8 ({error.reason} at byte {error.start}); convert it, e.g.'
        ' with iconv'
    ) from error
