"""Command-line flags of a function, from its signature and its docstring.

A parameter without a default is an argument; one with a default, or after the
*, is `--name=VALUE`. A parameter that is a dataclass is a group: its fields are
flags, and so are those of groups inside it; defaults are those of the function.
Types come from the annotations, help texts from the sections Args and
Attributes of the docstrings, so that nothing is written twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import inspect
import re
import types
import typing
from typing import Any, NamedTuple

from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import verification

# Field of a `Decoding` -> name of its flag; None: there is none.
DECODING = {'length': 'block_length', 'eos_ids': None, 'log_probs': None}

_TEXTS = tuple[str, ...]  # a flag that may be given several times
# Types of objects that are written as texts.
_PARSERS: dict[type, Callable[[str], Any]] = {
    adaptive_length.AdaptiveLength: adaptive_length.parse,
    verification.Verifier: verification.parse,
}
_PLAIN = (bool, float, int, str)
_REQUIRED = inspect.Parameter.empty
_Names = Mapping[str, str | None]


class _Flag(NamedTuple):
  """A flag or an argument.

  Attributes:
    path: the parameter, and in groups the fields that lead to the value.
    name: of the flag.
    kind: type of the value.
    default: `_REQUIRED` if there is none.
    help: from the docstring.
    place: how the function takes it.
  """

  path: tuple[str, ...]
  name: str
  kind: Any
  default: Any
  help: str
  place: Any = inspect.Parameter.KEYWORD_ONLY


def add(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    names: _Names | None = None,
) -> None:
  """Gives the parser what `function` takes.

  Args:
    parser: of the command.
    function: that the command calls.
    names: field of a group -> its flag, if it is called otherwise; None leaves
      the field at its default.
  """
  for flag in _flags(function, names or {}):
    text = flag.help.removesuffix('.').replace('%', '%%')
    if flag.place is inspect.Parameter.VAR_POSITIONAL:
      metavar = flag.name.removesuffix('s').upper()
      parser.add_argument(flag.name, nargs='*', help=text, metavar=metavar)
    elif flag.place is not inspect.Parameter.KEYWORD_ONLY:
      parser.add_argument(flag.name, help=text, metavar=flag.name.upper())
    elif flag.kind == _TEXTS:
      parser.add_argument(
          f'--{flag.name}', action='append', default=[], help=text,
          metavar='TEXT',
      )  # fmt: skip
    elif flag.kind is bool:
      parser.add_argument(f'--{flag.name}', action='store_true', help=text)
    else:
      kind = str if flag.kind in _PARSERS else flag.kind
      required = flag.default is _REQUIRED
      if 'default' not in text and flag.default not in (None, '', _REQUIRED):
        text += f' (default: {_described(flag.default)})'
      parser.add_argument(
          f'--{flag.name}',
          type=kind,
          required=required,
          default=None if required else flag.default,
          help=text,
          metavar='TEXT' if kind is str else kind.__name__.upper(),
      )


def call(
    function: Callable[..., Any],
    options: argparse.Namespace,
    names: _Names | None = None,
) -> Any:
  """Calls `function` with what was parsed; `names` as of `add`."""
  values = {}
  for flag in _flags(function, names or {}):
    value = getattr(options, flag.name)
    if flag.kind in _PARSERS and isinstance(value, str):
      value = _PARSERS[flag.kind](value)
    values[flag.path] = value
  positional, named = [], {}
  for name, parameter in inspect.signature(function).parameters.items():
    if (name,) in values:
      value = values[name,]
    else:
      value = _filled(parameter.default, (name,), values)
    if parameter.kind is parameter.VAR_POSITIONAL:
      positional += value
    elif parameter.kind is parameter.KEYWORD_ONLY:
      named[name] = value
    else:
      positional.append(value)
  return function(*positional, **named)


def _flags(function: Callable[..., Any], names: _Names) -> Iterator[_Flag]:
  """What `function` takes, in order."""
  hints = typing.get_type_hints(function)
  texts = documented(function)
  for name, parameter in inspect.signature(function).parameters.items():
    if dataclasses.is_dataclass(hints[name]):
      yield from _group(parameter.default, (name,), names)
    else:
      yield _Flag(
          (name,), name, _kind(hints[name]), parameter.default, texts[name],
          parameter.kind,
      )  # fmt: skip


def _group(group: Any, path: tuple[str, ...], names: _Names) -> Iterator[_Flag]:
  """The fields of a group, and of groups inside it."""
  hints = typing.get_type_hints(type(group))
  texts = documented(type(group))
  for field in dataclasses.fields(group):
    name = names.get(field.name, field.name)
    value = getattr(group, field.name)
    inside = (*path, field.name)
    if name is None:
      continue
    if dataclasses.is_dataclass(hints[field.name]):
      yield from _group(value, inside, names)
    else:
      kind = _kind(hints[field.name])
      yield _Flag(inside, name, kind, value, texts[field.name])


def _filled(group: Any, path: tuple[str, ...], values: dict) -> Any:
  """The group with the values of its flags."""
  changes = {}
  for field in dataclasses.fields(group):
    inside = (*path, field.name)
    if inside in values:
      changes[field.name] = values[inside]
    elif any(known[: len(inside)] == inside for known in values):
      changes[field.name] = _filled(getattr(group, field.name), inside, values)
  return dataclasses.replace(group, **changes)


def _kind(annotation: Any) -> Any:
  """The type of a value; of `X | None` it is X."""
  if annotation == _TEXTS:
    return annotation
  parts = [annotation]
  if isinstance(annotation, types.UnionType):
    parts = [p for p in typing.get_args(annotation) if p is not types.NoneType]
  if len(parts) != 1 or parts[0] not in (*_PLAIN, *_PARSERS):
    raise TypeError(f'No flag can be made of a parameter of type {annotation}.')
  return parts[0]


def _described(value: Any) -> str:
  if hasattr(value, 'describe'):
    return value.describe()
  return f'{value:g}' if isinstance(value, float) else str(value)


def documented(described: Any) -> dict[str, str]:
  """Argument or attribute -> what the docstring says of it, on one line."""
  is_class = isinstance(described, type)
  found: dict[str, str] = {}
  for each in reversed(described.__mro__) if is_class else [described]:
    text = re.search(
        r'^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)',
        inspect.getdoc(each) or '',
        re.M | re.S,
    )
    if text:
      entries = re.findall(
          r'^  \*?(\w+): (.*?)(?=^  \*?\w+: |\Z)', text.group(1), re.M | re.S
      )
      found |= {name: ' '.join(entry.split()) for name, entry in entries}
  return found
