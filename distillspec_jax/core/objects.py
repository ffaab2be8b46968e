"""Objects by name: 'block', 'lenient(linear, 0.5)', 'my.module:MyVerifier(3)'.

Choices such as verifiers are objects. Where they come from text, on a command
line, they are written as a call, and so are they in results: `parse` and
`describe` are each other's inverse.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
import dataclasses
import difflib
import importlib
import numbers
import os
import re
import sys
from typing import Any

from distillspec_jax.core import errors

_PACKAGE = 'distillspec_jax.'
_CALL = re.compile(r'\s*([\w.]+(?::\w+)?)\s*(?:\((.*)\))?\s*', re.DOTALL)


def parse(text: str, known: Mapping[str, Callable[..., Any]], kind: str) -> Any:
  """The object that `text` describes.

  Args:
    text: NAME, NAME(ARGUMENT, ...) or MODULE:NAME(ARGUMENT, ...). Arguments are
      numbers, or words, which need no quotes; a keyword may precede them.
    known: name -> class or function that makes the object.
    kind: what it is, for messages: 'verifier'.

  Raises:
    UserError: the text is not of that form, there is nothing of that name, or
      it does not take the arguments.
  """
  match = _CALL.fullmatch(text)
  if match is None:
    raise errors.UserError(
        f'The {kind} is {text!r}; write NAME or NAME(VALUE, ...), with one of'
        f' {", ".join(known)}, or MODULE:NAME for one of your own.'
    )
  name, inside = match.groups()
  factory = known[name] if name in known else _imported(name, known, kind)
  positional, keywords = [], {}
  for part in filter(None, map(str.strip, (inside or '').split(','))):
    key, equals, value = part.partition('=')
    if equals:
      keywords[key.strip()] = _value(value)
    else:
      positional.append(_value(part))
  try:
    return factory(*positional, **keywords)
  except TypeError as error:
    raise errors.UserError(
        f'The {kind} {text!r} has arguments that do not fit: {error}.'
    ) from error


def describe(instance: Any) -> str:
  """The text of a dataclass instance; fields at their defaults are left out.

  Classes of the package are in lower case: 'lenient(linear, 0.5)'; others have
  their module: 'my_module:MyVerifier(3)'.
  """
  parts, is_skipped = [], False
  for field in dataclasses.fields(instance):
    value = getattr(instance, field.name)
    if value == field.default:
      is_skipped = True
      continue
    # 2 and 2.0 are equal, and so is their text.
    is_number = isinstance(value, numbers.Real)
    text = str(value).removesuffix('.0') if is_number else str(value)
    parts.append(f'{field.name}={text}' if is_skipped else text)
  module, name = type(instance).__module__, type(instance).__name__
  is_ours = module.startswith(_PACKAGE)
  name = name.lower() if is_ours else f'{module}:{name}'
  return f'{name}({", ".join(parts)})' if parts else name


def search_working_folder() -> None:
  """Lets modules in the working folder be imported, as `python -m` does."""
  if os.getcwd() not in sys.path and '' not in sys.path:
    sys.path.insert(0, os.getcwd())


def import_module(name: str, kind: str) -> Any:
  """The user's module, which may lie in the working folder.

  Args:
    name: dotted.
    kind: what it was to provide, for the message.

  Raises:
    UserError: there is no such module.
  """
  search_working_folder()
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
      raise  # something that the module itself imports
    raise errors.UserError(
        f'There is no module {name}, which was to provide the {kind}. It is'
        f' looked for in the working folder {os.getcwd()} and among the'
        ' installed packages.'
    ) from error


def _imported(name: str, known: Mapping[str, Any], kind: str) -> Any:
  module, colon, attribute = name.partition(':')
  if not colon:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise errors.UserError(
        f'There is no {kind} called {name!r}; use one of {", ".join(known)}, or'
        f' MODULE:NAME for one of your own.{hint}'
    )
  loaded = import_module(module, kind)
  if not hasattr(loaded, attribute):
    raise errors.UserError(f'Module {module} has no {kind} {attribute}.')
  return getattr(loaded, attribute)


def _value(text: str) -> Any:
  text = text.strip()
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return float(text) if text in ('inf', '-inf') else text
