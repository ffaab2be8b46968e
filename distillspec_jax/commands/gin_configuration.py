"""gin files and flags -> a function whose arguments are bound.

No other file imports gin. What is wrong with a configuration is found before
work starts, by following the references from the command's function as gin
will: names without a value, missing arguments, values of another type. What
values of the right type may be, the classes that they belong to check.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
import dataclasses
import inspect
import os
import re
import sys
import tokenize
import types
import typing
from typing import Any, NamedTuple

from distillspec_jax.commands import flags as flags_lib
from distillspec_jax.commands import gin_errors
from distillspec_jax.commands import gin_files
from distillspec_jax.commands import unread_names
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import objects
from distillspec_jax.core import sources

_PACKAGE = 'distillspec_jax.'

_T5X_NAMES = 't5x_names.gin'

# What an experiment itself passes to the functions that it is given.
_PASSED_BY_EXPERIMENTS = frozenset(
    ('run', 'task', 'seed', 'target', 'draft', 'draft_name')
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--run', metavar='FOLDER', help='folder of the results')
  parser.add_argument(
      '--gin_file',
      action='append',
      default=[],
      metavar='FILE',
      help='a gin file; may be given several times, later ones win. It is a'
      ' program: it can import any module and call any function, so read those'
      ' of other people before you run them',
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
  parser.add_argument(
      '--data_cache',
      metavar='FOLDER',
      help='where large splits are kept once they are tokenised, local or'
      ' gs://; default: in ~/.cache',
  )
  parser.add_argument(
      '--list',
      action='store_true',
      help='lists the gin files of the package, or, with gin files, all names'
      ' that the command reads, and their values',
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
  """A gin value; text that is none, or names a file, is taken as a string."""
  from gin import config_parser

  try:
    parser = config_parser.ConfigParser(value, unread_names.References())
    parser.parse_value()
    is_whole = parser.current_token.string.strip() == ''
  except (SyntaxError, ValueError, tokenize.TokenError):
    is_whole = False
  is_file = value[:1] in tuple('[({@%') and os.path.exists(value)
  return value if is_whole and not is_file else repr(value)


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

  if options.list and not (files or options.gin_file):
    for line in gin_files.described():
      print(line)
    raise SystemExit(0)
  if options.run is not None:
    sources.run_folder(options.run)
  objects.search_working_folder()
  if options.data_cache is not None:
    from distillspec_jax.data import prepared

    prepared.use_folder(options.data_cache)
  # Under the name that `import` in a gin file gives it.
  wrapped = gin.external_configurable(function, module=function.__module__)
  name = f'{function.__module__.removeprefix(_PACKAGE)}.{function.__name__}'
  searched = options.gin_search_paths.split(',')
  for path in (*searched, gin_files.folder(), gin_files.folder().parent):
    gin.add_config_file_search_path(sources.expanded(path))
  own = [sources.expanded(file) for file in options.gin_file]
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
    for file in (*files, *own):
      gin.parse_config_file(file)
    file = ''
    gin.parse_config([*options.gin_bindings, *bindings])
  except RecursionError as error:  # gin's text of it has no end, either
    raise errors.UserError(f'configuration: {file} includes itself.') from error
  except gin_errors.KINDS as error:
    raise errors.UserError(gin_errors.explain(gin, error, file)) from error
  calls, problem = _check(gin, function, name, arguments)
  if options.list:
    for line in _listed(gin, calls):
      print(line)
    raise SystemExit(0)
  given = unread_names.given(gin, own, options.gin_bindings, gin_files.folder())
  _check_read(gin, list(given), calls, problem, name)
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
      bound = gin.get_bindings(self.selector, resolve_references=False)
    ignored = _PASSED_BY_EXPERIMENTS if self.is_passed_on else ()
    return {name: bound[name] for name in bound if name not in ignored}

  def key(self, gin: Any, argument: str) -> unread_names.Key:
    """What binds an argument in this scope; without a scope if nothing does."""
    for end in range(len(self.scope), 0, -1):
      scope = '/'.join(self.scope[:end])
      if argument in gin.config._CONFIG.get((scope, self.selector), {}):
        return scope, self.selector, argument
    return '', self.selector, argument


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


def _check_read(
    gin: Any,
    given: Sequence[unread_names.Binding],
    calls: Collection[_Call],
    problem: str,
    name: str,
) -> None:
  """Refuses names that nothing reads, and a configuration with a problem.

  Raises:
    UserError: there is a problem, or a name on the command line that this
      command does not read, or one in a file that no command reads.
  """
  read = {call.key(gin, a) for call in calls for a in call.bound(gin)}
  unread = [binding for binding in given if binding.key not in read]
  # t5x's names are read only where the file that explains them is given.
  files = [
      path
      for path in gin_files.folder().rglob('*.gin')
      if path.name != _T5X_NAMES
  ]
  unknown = unread_names.unknown(gin, unread, files)
  if problem:  # which may be why others are not read
    macros = [str(binding) for binding in unknown if binding.is_macro]
    if macros:
      problem += f' Nothing reads {", ".join(macros)}, which you gave.'
    raise errors.UserError(problem)
  refused = [b for b in unread if not b.place or b in unknown]
  if refused:
    known = list(_parameters(gin, calls))
    texts = []
    for binding in refused:
      # A file of the package for this command, such as runs/distil.gin.
      used = gin_files.with_texts(
          f'\n{gin_files.short(name)}.', f' = %{binding.name}\n'
      )
      hint = unread_names.hint(binding.name, known)
      if any(name.endswith(_T5X_NAMES) for name in used):
        hint += f' Or give --gin_file={used[0]}, which reads it.'
      elif used:
        hint = f' It is read by {" and ".join(used)}.'
      texts.append(f'nothing here reads {binding}.{hint}')
    raise errors.UserError(f'configuration: {" And ".join(texts)}')
  if unread:
    names = ', '.join(map(str, unread))
    print(f'distillspec: not read by this command: {names}', file=sys.stderr)


def _parameters(
    gin: Any, calls: Collection[_Call]
) -> dict[str, tuple[_Call, str]]:
  """Name of each value that the calls read -> the call and its argument."""
  found = {}
  for call in calls:
    parameters = inspect.signature(call.function).parameters.values()
    if call.selector == 'gin.macro':
      found['/'.join(call.scope)] = call, 'value'
    elif not call.selector.startswith('gin.'):
      for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
          continue
        if call.is_passed_on and parameter.name in _PASSED_BY_EXPERIMENTS:
          continue
        scope = call.key(gin, parameter.name)[0]
        name = f'{call.name}.{parameter.name}'
        found[f'{scope}/{name}' if scope else name] = call, parameter.name
  return found


def _listed(gin: Any, calls: Collection[_Call]) -> Iterator[str]:
  """Each name that the calls read, its value, and what it means."""
  for name, (call, argument) in sorted(_parameters(gin, calls).items()):
    parameter = inspect.signature(call.function).parameters[argument]
    bound = call.bound(gin)
    text = '(must be set)'
    if argument in bound:
      text = repr(bound[argument])
    elif parameter.default is not parameter.empty:
      text = repr(parameter.default)
    texts = flags_lib.documented(call.function)
    yield f'{name} = {text}'
    if argument in texts:
      yield f'    {texts[argument]}'


def _check(
    gin: Any, function: Callable[..., Any], name: str, given: Collection[str]
) -> tuple[set[_Call], str]:
  """All calls that calling the function makes, and a problem of them or ''.

  Args:
    gin: the module.
    function: that a command calls.
    name: of it, for messages.
    given: arguments that have a flag of their own.
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
      problems += _missing(call, bound, given) + _wrong(gin, call, bound)
  if unset:
    names = sorted(unset)
    problems.insert(
        0,
        f'{", ".join(names)} must be set: name a gin file that binds it, or'
        f' give --gin.{names[0]}=VALUE; --list lists the files of the package.',
    )
  return seen, problems[0] if problems else ''


def _missing(
    call: _Call, bound: dict[str, Any], given: Collection[str]
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
  files = gin_files.with_texts(
      f'\n{gin_files.short(call.selector)}.{missing[0]} = '
  )
  if missing[0] in given:
    advice = f'give --{missing[0]}'
  elif files:
    advice += f', or give --gin_file={" or ".join(files)}'
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
      name = annotation.__name__ if is_class else str(annotation)
      name = re.sub(r'\b([a-z_]+\.)+', '', name)
      hint = ''
      if kind in (int, float, str) and _fits(tuple, annotation, ()):
        hint = f' Write ({value!r},) for one value.'
      wrong.append(f'{call}.{argument} is {text}; it must be {name}.{hint}')
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
