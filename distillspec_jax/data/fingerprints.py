"""What the tokens of a split depend on, as values that can be compared.

Sources are identified by their files' names, sizes and dates, and by their
first examples; code of one's own by its text.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
from typing import Any

from etils import epath

from distillspec_jax.core import sources

_PACKAGE = 'distillspec_jax.'
_FIRST = 64  # examples that are compared
# Fields of tasks that do not change the tokens, or have an entry of their own.
_OTHERS = frozenset(
    'name input_length label_length vocabulary vocabulary_size metrics cache'
    ' max_tokens_in_memory train validation test data_dir folder'.split()
)


def key(task: Any, split: str) -> dict[str, Any]:
  """Name -> value, for JSON, of all that a split's tokens depend on."""
  first = hashlib.sha256()
  head = itertools.islice(task.raw(split), _FIRST)
  for example in task.tokenise(list(head)):
    for tokens in example or ():
      first.update(f'{len(tokens)} '.encode() + tokens.tobytes())
  kind = type(task)
  return {
      'task': f'{kind.__module__}.{kind.__qualname__}',
      'split': split,
      'settings': dict(_settings(task)),
      'files': [_described(path) for path in task.files(split)],
      'code': code(*task.code()),
      'first': first.hexdigest()[:16],
      'vocabulary': vocabulary(task.vocabulary),
      'vocabulary_size': task.vocabulary.vocab_size,
      'lengths': [task.input_length, task.label_length],
  }


def digest(values: dict[str, Any]) -> str:
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def size(task: Any, split: str) -> int | None:
  """Bytes of a split's files; None where they are not known."""
  found = [_stat(path) for path in task.files(split)]
  if not found or None in found:
    return None
  return sum(each.length for each in found)


def vocabulary(of: Any) -> str:
  """Identifies how a vocabulary encodes text."""
  definition = of.definition()
  if not isinstance(definition, bytes):
    definition = repr(definition).encode()
  kind = type(of).__name__.encode()
  return hashlib.sha256(kind + definition).hexdigest()[:16]


def code(*of: Any) -> str:
  """A hash of the source of functions and classes that are not ours."""
  found = hashlib.sha256()
  for each in of:
    while isinstance(each, functools.partial):
      found.update(repr((each.args, each.keywords)).encode())
      each = each.func
    if not getattr(each, '__module__', '').startswith(_PACKAGE):
      try:
        found.update(inspect.getsource(each).encode())
      except (OSError, TypeError):  # typed at a prompt, or made by a call
        found.update(
            getattr(each, '__qualname__', type(each).__name__).encode()
        )
  return found.hexdigest()[:16]


def _settings(task: Any) -> Iterator[tuple[str, str]]:
  for field in dataclasses.fields(task):
    if field.name not in _OTHERS and not field.name.startswith('_'):
      yield field.name, repr(getattr(task, field.name))


def _stat(path: str) -> Any | None:
  try:
    return epath.Path(sources.expanded(path)).stat()
  except Exception:  # not there, of many kinds in a bucket: reading it says so
    return None


def _described(path: str) -> list[Any]:
  found = _stat(path)
  if found is None:
    return [path]
  return [path.rpartition('/')[2], found.length, found.mtime]
