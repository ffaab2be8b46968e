"""Command-line flags of a function, from its signature and its docstring.

A parameter without a default is an argument; one with a default, or after the
*, is `--name=VALUE`. Types come from the annotations, help texts from the
section Args of the docstring, so that nothing is said twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import inspect
import re
import types
import typing
from typing import Any

_TEXTS = tuple[str, ...]  # a flag that may be given several times
_METAVARS = {str: 'TEXT', tuple: 'NAME,NUMBER'}


def add(parser: argparse.ArgumentParser, function: Callable[..., Any]) -> None:
  """Gives the parser what `function` takes."""
  texts = _texts(function)
  hints = typing.get_type_hints(function)
  for name, parameter in inspect.signature(function).parameters.items():
    text = texts[name].replace('%', '%%')
    kind = _kind(hints[name])
    if parameter.kind is parameter.VAR_POSITIONAL:
      parser.add_argument(name, nargs='*', help=text, metavar=_singular(name))
    elif parameter.kind is not parameter.KEYWORD_ONLY:
      parser.add_argument(name, help=text, metavar=name.upper())
    elif kind == _TEXTS:
      parser.add_argument(
          f'--{name}', action='append', default=[], help=text, metavar='TEXT'
      )
    elif kind is bool:
      parser.add_argument(f'--{name}', action='store_true', help=text)
    else:
      required = parameter.default is parameter.empty
      parser.add_argument(
          f'--{name}',
          type=_values if kind is tuple else kind,
          required=required,
          default=None if required else parameter.default,
          help=text,
          metavar=_METAVARS.get(kind) or kind.__name__.upper(),
      )


def call(function: Callable[..., Any], options: argparse.Namespace) -> Any:
  """Calls `function` with what was parsed."""
  positional, named = [], {}
  for name, parameter in inspect.signature(function).parameters.items():
    value = getattr(options, name)
    if parameter.kind is parameter.VAR_POSITIONAL:
      positional += value
    elif parameter.kind is parameter.KEYWORD_ONLY:
      named[name] = value
    else:
      positional.append(value)
  return function(*positional, **named)


def _kind(annotation: Any) -> type:
  """The type of a value; of `X | None` it is X."""
  if annotation == _TEXTS:
    return annotation
  parts = [annotation]
  if isinstance(annotation, types.UnionType):
    parts = [p for p in typing.get_args(annotation) if p is not types.NoneType]
  if len(parts) != 1 or parts[0] not in (bool, float, int, str, tuple):
    raise TypeError(f'No flag can be made of a parameter of type {annotation}.')
  return parts[0]


def _values(text: str) -> tuple[str | float, ...]:
  """'linear,0.5' -> ('linear', 0.5)."""
  found = []
  for part in text.split(','):
    try:
      found.append(float(part))
    except ValueError:
      found.append(part.strip())
  return tuple(found)


def _singular(name: str) -> str:
  return name.removesuffix('s').upper()


def _texts(function: Callable[..., Any]) -> dict[str, str]:
  """Parameter -> what the docstring says of it, on one line."""
  section = re.search(
      r'^Args:\n(.*?)(?=^\S|\Z)', inspect.getdoc(function) or '', re.M | re.S
  )
  found = re.findall(
      r'^  \*?(\w+): (.*?)(?=^  \*?\w+: |\Z)', section.group(1), re.M | re.S
  )
  return {name: ' '.join(text.split()) for name, text in found}
