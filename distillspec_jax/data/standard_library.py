"""Real text that every Python carries: its standard library's own source.

Nothing is downloaded. An example is a place in a module: the lines before it
are the input, the next lines are the label. What comes next is uncertain, as in
any text, and a small model learns to write something that looks like Python.
Whole modules, not examples, are divided into splits, so that held-out text is
unseen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
import hashlib
import os
import pathlib
import sysconfig

# Tests, generated tables, and modules that are not installed everywhere.
_EXCLUDED = frozenset(
    '__pycache__ ensurepip encodings idlelib idle_test lib2to3 pydoc_data test'
    ' tests site-packages dist-packages tkinter turtledemo'.split()
)
SPLITS = ('train', 'validation', 'test')


def modules(split: str) -> list[pathlib.Path]:
  """The source files of a split, in an order that mixes subjects."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  hashed = []
  for folder, folders, files in os.walk(root):
    folders[:] = [name for name in folders if name not in _EXCLUDED]
    for file in files:
      path = pathlib.Path(folder) / file
      if path.suffix != '.py' or file.startswith(('_sysconfigdata', 'turtle')):
        continue
      digest = hashlib.sha256(str(path.relative_to(root)).encode()).digest()
      if SPLITS[{18: 1, 19: 2}.get(digest[0] % 20, 0)] == split:
        hashed.append((digest, path))
  return [path for _, path in sorted(hashed)]


def continuations(
    split: str, input_characters: int, label_characters: int
) -> Iterator[tuple[str, str]]:
  """(lines before, lines that follow), cut at line ends.

  Args:
    split: 'train', 'validation' or 'test'.
    input_characters: maximum characters of the lines before.
    label_characters: maximum characters of the lines that follow, unless the
      first alone is longer.
  """
  for path in modules(split):
    lines = [line.rstrip() for line in _read(path).split('\n')]
    start = 0
    while start < len(lines):
      end, size = start, 0
      while end < len(lines) and (
          end == start or size + len(lines[end]) < label_characters
      ):
        size += len(lines[end]) + 1
        end += 1
      label = '\n'.join(lines[start:end])
      context = '\n'.join(lines[max(0, start - 12) : start])
      if start and label.strip() and len(label) <= 2 * label_characters:
        yield _last_lines(context, input_characters), label
      start = end


def docstrings(split: str) -> Iterator[tuple[str, str]]:
  """(signature with its module, first paragraph of the docstring)."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  for path in modules(split):
    try:
      tree = ast.parse(_read(path))
    except SyntaxError:
      continue
    module = '.'.join(path.relative_to(root).with_suffix('').parts)
    for node in ast.walk(tree):
      if not isinstance(
          node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
      ):
        continue
      text = ast.get_docstring(node)
      if not text:
        continue
      head = f'class {node.name}'
      if not isinstance(node, ast.ClassDef):
        head = f'def {node.name}({ast.unparse(node.args)})'
      yield f'{module}: {head}', ' '.join(text.split('\n\n')[0].split())


def file_of(split: str, text: str) -> str | None:
  """The first module of a split that contains the text, if there is one."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  for path in modules(split):
    lines = [line.rstrip() for line in _read(path).split('\n')]
    if text.strip() and text in '\n'.join(lines):
      return path.relative_to(root).as_posix()
  return None


def _read(path: pathlib.Path) -> str:
  return path.read_text(encoding='utf-8', errors='replace')


def _last_lines(text: str, characters: int) -> str:
  """The end of the text, from the start of a line if there is one."""
  if len(text) <= characters:
    return text
  cut = text[-characters:]
  return cut.split('\n', 1)[1] if '\n' in cut else cut
