"""gin files and flags -> a function whose arguments are bound.

No other file imports gin. What is wrong with a configuration is found before
work starts, by following the references from the command's function as gin
will: names without a value, missing arguments, values of another type. What
values of the right type may be, the classes that they belong to check.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Collection, Iterator, Sequence
import dataclasses
import difflib
import importlib
import inspect
import os
import pathlib
import re
import sys
import types
import typing
from typing import Any, NamedTuple

from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import objects

_PACKAGE = 'distillspec_jax.'

# What an experiment itself passes to the functions that it is given.
_PASSED_BY_EXPERIMENTS = frozenset(
    ('run', 'task', 'seed', 'target', 'draft', 'draft_name')
)

# What gin raises for a wrong file or binding, besides errors of ours.
_GIN_ERRORS = (
    AttributeError, ImportError, KeyError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--run', metavar='FOLDER', help='folder of the results')
  parser.add_argument(
      '--gin_file',
      action='append',
      default=[],
      metavar='FILE',
      help='a gin file; may be given several times, later ones win',
  )
  parser.add_argument(
      '--gin_bindings',
      action='append',
      default=[],
      metavar="'NAME = VALUE'",
      help='a binding; also as --gin.NAME=VALUE',
  )
  parser.add_argument(
      '--gin_search_paths',
      default='.',
      metavar='FOLDER,...',
      help='where gin files are searched; those of the package are always'
      ' found',
  )


def as_flags(arguments: Sequence[str]) -> list[str]:
  """The arguments, with --gin_bindings='NAME = VALUE' for --gin.NAME=VALUE.

  Raises:
    UserError: one of them has no value.
  """
  flags = []
  for argument in arguments:
    if argument.startswith('--gin.'):
      name, equals, value = argument.removeprefix('--gin.').partition('=')
      if not equals:
        raise errors.UserError(
            f'{argument} has no value; write --gin.{name}=VALUE.'
        )
      argument = f'--gin_bindings={name} = {_quoted(value)}'
    flags.append(argument)
  return flags


def _quoted(value: str) -> str:
  """A gin value; text that is none is taken as a string."""
  if re.match(r'[@%(\[{]', value):  # references, or may contain some
    return value
  try:
    ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return repr(value)
  return value


def folder() -> pathlib.Path:
  """The gin files that come with the package."""
  here = pathlib.Path(__file__).resolve().parents[1]
  packaged = here / 'gin_configs'
  return packaged if packaged.is_dir() else here.parent / 'gin_configs'


def configured(
    function: Callable[..., Any],
    options: argparse.Namespace,
    files: Sequence[str] = (),
    **arguments: Any,
) -> Callable[..., Any]:
  """The function with its arguments bound, as files and flags say.

  Args:
    function: that a command calls.
    options: parsed flags, those of `add_flags` among them.
    files: gin files that are read before those of the flags.
    **arguments: of the function, from other flags; None where not given.

  Raises:
    UserError: anything that is wrong with the configuration.
  """
  import gin

  if options.run is not None and '://' in options.run:
    raise errors.UserError(
        f'--run is {options.run}; the folder of a run must be in a file system.'
        ' Mount the bucket, or copy the folder to it when the run is done.'
    )
  objects.search_working_folder()
  # Under the name that `import` in a gin file gives it.
  wrapped = gin.external_configurable(function, module=function.__module__)
  name = f'{function.__module__.removeprefix(_PACKAGE)}.{function.__name__}'
  for path in (*options.gin_search_paths.split(','), folder(), folder().parent):
    gin.add_config_file_search_path(str(path))
  arguments = {'run': options.run, **arguments}
  bindings = [
      f'{name}.{argument} = {value!r}'
      for argument, value in arguments.items()
      if value is not None
  ]
  # gin's other reader takes runs/x.gin for a file of a package named `runs`,
  # and fails if the working folder has a folder of that name.
  del gin.config._FILE_READERS[1:]
  try:
    gin.parse_config_files_and_bindings(
        [*files, *options.gin_file],
        [*options.gin_bindings, *bindings],
        finalize_config=False,
        print_includes_and_imports=False,
    )
  except _GIN_ERRORS as error:
    raise errors.UserError(_explain(gin, error, name)) from error
  calls = _check(gin, function, name, arguments)
  for binding in options.gin_bindings:
    _warn_if_unused(gin, binding, calls)
  configuration.set_current(gin.config_str())
  return wrapped


def message(error: BaseException) -> str:
  """An error's text on one line, without the calls that gin adds to it."""
  text = re.split(r'\n\s*In call to configurable', str(error))[0]
  return ' '.join(text.split())


class _Call(NamedTuple):
  """A call of a configurable that the configuration asks for.

  Attributes:
    function: or class, as it was before gin wrapped it.
    selector: gin's full name of it.
    name: as in the gin file, without the scope.
    scope: in which it is called.
    is_passed_on: as a function; the caller has some of the arguments.
  """

  function: Callable[..., Any]
  selector: str
  name: str
  scope: tuple[str, ...] = ()
  is_passed_on: bool = False

  def __str__(self) -> str:
    return '/'.join([*self.scope, self.name])

  def bound(self, gin: Any) -> dict[str, Any]:
    """Argument -> value in this scope, with references as such."""
    with gin.config_scope(list(self.scope)):
      return gin.get_bindings(self.selector, resolve_references=False)


def _references(
    gin: Any, value: Any, scope: tuple[str, ...]
) -> Iterator[_Call]:
  """The calls in a value that is bound in a scope."""
  for reference in gin.config.iterate_references({'': value}):
    yield _Call(
        reference.configurable.wrapped,
        reference.configurable.selector,
        reference.selector,
        # A reference without a scope is called in that of its surroundings.
        tuple(reference.scopes) or scope,
        not reference.evaluate,
    )


def _warn_if_unused(gin: Any, binding: str, calls: set[_Call]) -> None:
  """Says so where a flag binds an argument of what is not called."""
  name = binding.partition('=')[0].strip()
  if '.' not in name:  # a macro, which other commands may use
    return
  key = gin.config.ParsedBindingKey.parse(name)
  scope = tuple(filter(None, key.scope.split('/')))
  if not any(
      call.selector == key.complete_selector
      and call.scope[: len(scope)] == scope
      for call in calls
  ):
    print(f'distillspec: {name} is bound, but not used here.', file=sys.stderr)


def _check(
    gin: Any, function: Callable[..., Any], name: str, flags: Collection[str]
) -> set[_Call]:
  """All calls that calling the function makes.

  Args:
    gin: the module.
    function: that a command calls.
    name: of it, for messages.
    flags: arguments that have a flag of their own.

  Raises:
    UserError: one of them would fail for its bindings.
  """
  selector = f'{function.__module__}.{function.__name__}'
  pending = [_Call(function, selector, name)]
  seen, unset, problems = set(), set(), []
  while pending:
    call = pending.pop()
    if call in seen:
      continue
    seen.add(call)
    bound = call.bound(gin)
    if call.selector == 'gin.macro' and not bound:
      unset.add(str(call).removesuffix('/gin.macro'))
    for argument, value in bound.items():
      called = list(_references(gin, value, call.scope))
      pending += called
      if any(str(c) == 'gin.REQUIRED/gin.constant' for c in called):
        is_macro = call.selector == 'gin.macro'
        unset.add('/'.join(call.scope) if is_macro else f'{call}.{argument}')
    if not call.selector.startswith('gin.'):
      problems += _missing(call, bound, flags) + _wrong(gin, call, bound)
  if unset:
    names = sorted(unset)
    raise errors.UserError(
        f'{", ".join(names)} must be set: name a gin file that binds it, or'
        f' give --gin.{names[0]}=VALUE.'
    )
  if problems:
    raise errors.UserError(problems[0])
  return seen


def _missing(
    call: _Call, bound: dict[str, Any], flags: Collection[str]
) -> list[str]:
  """Says which required arguments of a call are not bound, if any."""
  parameters = list(inspect.signature(call.function).parameters.values())
  if call.is_passed_on:
    # Whoever gets a function passes what it takes by position.
    parameters = [
        p for p in parameters
        if p.kind == p.KEYWORD_ONLY and p.name not in _PASSED_BY_EXPERIMENTS
    ]  # fmt: skip
  missing = [
      p.name
      for p in parameters
      if p.default is p.empty
      and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
      and p.name not in bound
  ]
  if not missing:
    return []
  advice = f'bind {call}.{missing[0]} in a gin file'
  if missing[0] in flags:
    advice = f'give --{missing[0]}'
  verb = 'is' if len(missing) == 1 else 'are'
  return [f'{", ".join(missing)} of {call} {verb} missing: {advice}.']


def _wrong(gin: Any, call: _Call, bound: dict[str, Any]) -> list[str]:
  """Says which arguments are of another type than the annotated one."""
  annotations, wrong = _annotations(call.function), []
  for argument, value in bound.items():
    text = repr(value)
    if text.startswith('%'):
      macro = next(_references(gin, value, ()))
      value = macro.bound(gin).get('value')
      text = f'{text} = {value!r}'
    kind = type(value)
    if kind is gin.config.ConfigurableReference and value.evaluate:
      kind = value.configurable.wrapped
    annotation = annotations.get(argument, Any)
    if not _fits(kind, annotation, value):
      is_class = isinstance(annotation, type)
      name = annotation.__name__ if is_class else annotation
      wrong.append(f'{call}.{argument} is {text}; it must be {name}.')
  return wrong


def _annotations(function: Any) -> dict[str, Any]:
  """Argument -> type, of a function or of making an instance of a class."""
  is_class = isinstance(function, type)
  if is_class and not dataclasses.is_dataclass(function):
    function = function.__init__
  try:
    return typing.get_type_hints(function)
  except (AttributeError, NameError):  # for readers, not for programs
    return {}


def _fits(kind: Any, annotation: Any, value: Any) -> bool:
  """Whether values of a class are of an annotated type, as far as is known."""
  plain = (bool, int, float, str, tuple, list, dict, type(None))
  is_ours = isinstance(kind, type) and kind.__module__.startswith(_PACKAGE)
  if kind not in plain and not is_ours:
    return True
  origin = typing.get_origin(annotation)
  if origin in (types.UnionType, typing.Union):
    parts = typing.get_args(annotation)
    return any(_fits(kind, part, value) for part in parts)
  if origin is typing.Literal:
    return value in typing.get_args(annotation)
  wanted = annotation if origin is None else origin
  if not isinstance(wanted, type) or wanted in (Any, object):
    return True
  if kind is bool or kind is str:  # no number, no sequence
    return wanted is kind
  if wanted is float:
    return kind in (int, float)
  if kind is list and wanted is tuple:
    return True
  return issubclass(kind, wanted)


def _explain(gin: Any, error: Exception, name: str) -> str:
  """One line on what is wrong with the configuration, where, and near names."""
  text, _, place = str(error).partition('\n  In ')
  text = ' '.join(text.split())
  if isinstance(error, SyntaxError):
    text = f'{error.msg.rstrip(".")} in {(error.text or "").strip()!r}.'
    if error.filename:
      text = f'{error.filename}:{error.lineno}: {text}'
  if isinstance(error, ModuleNotFoundError):
    text += (
        f'. Modules are searched in the working folder {os.getcwd()} and among'
        ' the installed packages.'
    )
  if isinstance(error, OSError) and 'Unable to open file' in text:
    text = text.split(' Searched')[0]
    text += (
        ' It is searched here, in --gin_search_paths and in'
        f' {folder()}; name one of those files.'
    )
  where = re.match(r'file "(.+)", line (\d+)', place)
  if where:
    text = f'{where.group(1)}:{where.group(2)}: {text}'
  elif place:
    text += f' Given as {place.splitlines()[1].strip()!r}.'
  near = _near(gin, text, name)
  if near:
    text += f' Did you mean {" or ".join(near)}?'
  return f'configuration: {text}'


def _near(gin: Any, text: str, name: str) -> list[str]:
  """Names like the unknown one in an error of gin."""
  parameter = re.search(
      r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", text
  )
  if parameter:
    function = gin.get_configurable(parameter.group(1))
    arguments = inspect.signature(function).parameters
    return difflib.get_close_matches(parameter.group(2), arguments)
  attribute = re.search(r"<module '([\w.]+)'.*> has no attribute (\w+)", text)
  if attribute:
    module = importlib.import_module(attribute.group(1))
    return difflib.get_close_matches(attribute.group(2), dir(module))
  unknown = re.search(r"No configurable matching '([\w./]+)'", text)
  if unknown:
    bound = re.findall(r'^(?:\w+/)*([\w.]+)\.\w+ =', gin.config_str(), re.M)
    known = {name, *bound}
    known |= {each.rsplit('.', 1)[-1] for each in known}
    return difflib.get_close_matches(unknown.group(1), sorted(known))
  return []
