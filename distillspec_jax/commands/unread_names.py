"""Names that gin files and flags bind, and that nothing reads.

Each name on a command line must be read by the command. A user's gin files may
be shared by several commands: there a name is refused if no command could read
it, and listed if only this one does not. The package's files are not judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
import difflib
import os
import pathlib
import re
from typing import Any, NamedTuple

# A name of t5x's gin files -> last part of ours (see `_last`), or all of it.
_T5X = {
    'TRAIN_STEPS': ('numsteps',),
    'EVAL_PERIOD': ('every',),
    'EVAL_STEPS': ('examples',),
    'CHECKPOINT_PERIOD': ('checkpointevery',),
    'RANDOM_SEED': ('seed',),
    'MODEL_DIR': ('--run',),
    'EVAL_OUTPUT_DIR': ('--run',),
    'INFER_OUTPUT_DIR': ('--run',),
    'INITIAL_CHECKPOINT_PATH': ('DRAFT', 'settings.Start.checkpoint'),
    'CHECKPOINT_PATH': ('TARGET', 'DRAFT'),
    'TASK_FEATURE_LENGTHS': (
        'tasks.registered.task_feature_lengths',
        'inputlength',
        'labellength',
    ),
    'USE_CACHED_TASKS': ('tasks.registered.use_cached',),
    'MIXTURE_OR_TASK_NAME': ('TASK', 'tasks.registered.name'),
    'MIXTURE_OR_TASK_MODULE': ('tasks.registered.module',),
}

Key = tuple[str, str, str]  # scope, gin's full name of a function, argument


class Binding(NamedTuple):
  """A binding as it was given.

  Attributes:
    key: what it binds.
    name: as written.
    place: 'FILE:LINE', or '' on the command line.
  """

  key: Key
  name: str
  place: str

  @property
  def is_macro(self) -> bool:
    return self.key[1] == 'gin.macro'

  def __str__(self) -> str:
    return f'{self.name} ({self.place})' if self.place else self.name


class References:
  """Collects the names that values refer to, in place of gin's objects."""

  def __init__(self) -> None:
    self.names: set[str] = set()

  def configurable_reference(self, name: str, evaluate: bool) -> None:
    del evaluate
    self.names.add(name)

  def macro(self, name: str) -> None:
    self.names.add(name)


def given(
    gin: Any, files: Sequence[str], bindings: Sequence[str], ours: pathlib.Path
) -> Iterator[Binding]:
  """The bindings of the user's files, those outside `ours`, and of flags."""
  parser = gin.config.config_parser
  for file in files:
    path = next(
        path
        for prefix in gin.config._LOCATION_PREFIXES
        if os.path.isfile(path := os.path.join(prefix, file))
    )
    if not pathlib.Path(path).resolve().is_relative_to(ours):
      with open(path, encoding='utf-8') as text:
        for each in parser.ConfigParser(text, References()):
          if isinstance(each, parser.IncludeStatement):
            yield from given(gin, [each.filename], (), ours)
          else:
            yield from _binding(gin, each, f'{path}:{each.location.line_num}')
  for each in parser.ConfigParser('\n'.join(bindings), References()):
    yield from _binding(gin, each, '')


def _binding(gin: Any, statement: Any, place: str) -> Iterator[Binding]:
  if not isinstance(statement, gin.config.config_parser.BindingStatement):
    return
  scope, selector, argument, *_ = statement
  name = f'{scope}/{selector}' if scope else selector
  if not argument:
    yield Binding((name, 'gin.macro', 'value'), name, place)
    return
  try:
    configurable = gin.config._REGISTRY.get_match(selector)
  except KeyError:  # an abbreviation that only its file explains
    return
  if configurable is not None:
    key = scope, configurable.selector, argument
    yield Binding(key, f'{name}.{argument}', place)


def unknown(
    gin: Any, bindings: Sequence[Binding], ours: Collection[pathlib.Path]
) -> list[Binding]:
  """Those that no command could read, with the files `ours` of the package."""
  if not bindings:
    return []
  parser, references = gin.config.config_parser, References()
  names = references.names
  for path in ours:
    with path.open(encoding='utf-8') as text:
      for each in parser.ConfigParser(text, references):
        if isinstance(each, parser.BindingStatement):
          scope, selector, *_ = each
          names.add(f'{scope}/{selector}' if scope else selector)
  for reference in gin.config.iterate_references(gin.config._CONFIG):
    is_macro = reference.selector == 'gin.macro'
    last = () if is_macro else (reference.selector,)
    names.add('/'.join((*reference.scopes, *last)))
  scopes = {'', *(name.rpartition('/')[0] for name in names)}
  functions = {re.split('[./]', name)[-1] for name in names}
  return [
      binding
      for binding in bindings
      if binding.name not in names
      and (
          binding.is_macro
          or binding.key[0] not in scopes
          or binding.key[1].rpartition('.')[2] not in functions
      )
  ]


def hint(name: str, known: Collection[str]) -> str:
  """A question for what may be meant, or ''."""
  counterparts = _T5X.get(name.rpartition('/')[2])
  if counterparts is None:
    near = _near(name, known)
  else:
    near = [x for each in counterparts for x in _counterpart(each, known)]
  return question(near)


def question(near: Sequence[str]) -> str:
  """Asks for one of these names, if there are any."""
  *others, last = near or ['']
  others = [', '.join(others)] if others else []
  return last and f' Did you mean {" or ".join([*others, last])}?'


def _counterpart(name: str, known: Collection[str]) -> list[str]:
  """The known names with this last part; the name itself where it has more."""
  found = [each for each in known if _last(each) == name]
  return _sorted(name, found) or [name]


def _near(name: str, known: Collection[str]) -> list[str]:
  """Names whose last part is the same, or else like it."""
  last = {each: _last(each) for each in known}
  close = difflib.get_close_matches(_last(name), set(last.values()), cutoff=0.7)
  if _last(name) in close:
    close = [_last(name)]
  return _sorted(name, [each for each in known if last[each] in close])


def _sorted(name: str, found: Collection[str]) -> list[str]:
  """The three that are most like the name; macros first."""
  near = difflib.get_close_matches(name, found, cutoff=0.0)
  return sorted(near, key=lambda each: '.' in each)


def _last(name: str) -> str:
  """The last part of a name, for comparison."""
  return re.sub(r'.*[./]|_', '', name).lower()
