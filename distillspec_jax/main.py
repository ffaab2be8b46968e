"""The command line: `distillspec COMMAND`, one command a stage.

This file alone knows of gin. It reads flags and gin files, finds the function
of the command, and turns errors into one line and an exit code:

  0 done   1 failed   2 bad arguments or configuration   130 interrupted
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import pathlib
import re
import sys
import traceback
from typing import Any, NamedTuple, Sequence

from distillspec_jax.core import configuration
from distillspec_jax.core import errors


class Command(NamedTuple):
  """A command: the function it calls, 'module:name', and what it says."""

  function: str
  help: str
  example: str
  gin_file: str | None = None  # read first
  uses_jax: bool = True


COMMANDS = {
    'quickstart': Command(
        'distillspec_jax.pipeline:run_experiment',
        'the whole story on embedded data, in minutes, on a laptop: fine-tune a'
        ' target and a draft, distil, measure, report',
        'distillspec quickstart --run=runs/quickstart',
        'experiments/quickstart.gin',
    ),
    'experiment': Command(
        'distillspec_jax.pipeline:run_experiment',
        'all stages of an experiment file; finished ones are not done again',
        'distillspec experiment --gin_file=experiments/gsm8k.gin'
        ' --run=runs/gsm8k',
    ),
    'train': Command(
        'distillspec_jax.training.loop:train',
        'supervised fine-tuning or distillation, as the gin files say; goes on'
        ' by itself where it was stopped',
        'distillspec train --gin_file=models/micro.gin'
        ' --gin_file=tasks/python.gin --gin_file=methods/fine_tune.gin'
        ' --gin_file=runs/train.gin --gin.NUM_STEPS=500 --run=runs/target',
    ),
    'evaluate': Command(
        'distillspec_jax.evaluation.acceptance:evaluate',
        'acceptance rate, block efficiency and task quality of a pair',
        'distillspec evaluate --gin_file=tasks/python.gin'
        ' --gin_file=runs/evaluate.gin --run=runs/measured'
        ' --gin.TARGET=runs/target --gin.DRAFT=runs/draft',
    ),
    'benchmark': Command(
        'distillspec_jax.evaluation.latency:benchmark',
        'wall clock: autoregressive and speculative, over batch and block'
        ' lengths',
        'distillspec benchmark --gin_file=tasks/python.gin'
        ' --gin_file=runs/benchmark.gin --run=runs/measured'
        ' --gin.TARGET=runs/target --gin.DRAFT=runs/draft',
    ),
    'report': Command(
        'distillspec_jax.reporting.report:report',
        'result files -> a self-contained HTML page, PNG figures, Markdown'
        ' tables',
        'distillspec report --run=runs/quickstart',
        uses_jax=False,
    ),
}


def run() -> None:
  """Entry point of the command `distillspec`."""
  sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
  """Runs a command line; returns the exit code."""
  try:
    command, options, bindings = _parse(arguments)
    function = _configured(COMMANDS[command], options, bindings)
    function()
  except errors.UserError as error:
    print(f'distillspec: {_one_line(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('distillspec: interrupted', file=sys.stderr)
    return 130
  except OSError as error:
    where = f' ({error.filename})' if error.filename else ''
    print(f'distillspec: {error.strerror or error}{where}', file=sys.stderr)
    return 1
  except SystemExit as stop:
    return int(stop.code or 0)
  except Exception:  # a failure of ours: the traceback is the message
    traceback.print_exc()
    return 1
  return 0


def _parse(
    arguments: Sequence[str],
) -> tuple[str, argparse.Namespace, list[str]]:
  """The command, its flags, and the gin bindings among them."""
  bindings, rest = [], []
  for argument in arguments:
    if argument.startswith('--gin.'):
      name, equals, value = argument[len('--gin.') :].partition('=')
      if not equals:
        raise errors.UserError(
            f'{argument} has no value; write --gin.{name}=VALUE.'
        )
      bindings.append(f'{name} = {_quoted(value)}')
    else:
      rest.append(argument)
  parser = argparse.ArgumentParser(
      prog='distillspec',
      description='Distilled drafts that make speculative decoding faster.',
  )
  subparsers = parser.add_subparsers(dest='command', metavar='COMMAND')
  for name, command in COMMANDS.items():
    sub = subparsers.add_parser(
        name,
        help=command.help,
        description=command.help[0].upper() + command.help[1:] + '.',
        epilog=f'example: {command.example}',
    )
    sub.add_argument('--run', metavar='FOLDER', help='folder of the results')
    if command.uses_jax:
      sub.add_argument(
          '--gin_file',
          action='append',
          default=[],
          metavar='FILE',
          help='a gin file; may be given several times, later ones win',
      )
      sub.add_argument(
          '--gin_bindings',
          action='append',
          default=[],
          metavar="'NAME = VALUE'",
          help='a binding; also as --gin.NAME=VALUE',
      )
      sub.add_argument(
          '--gin_search_paths',
          default='.',
          metavar='FOLDER,...',
          help='where gin files are looked for; the files that come with the'
          ' package are always found',
      )
  options = parser.parse_args(rest)
  if options.command is None:
    parser.print_help()
    raise SystemExit(2)
  if bindings and not COMMANDS[options.command].uses_jax:
    raise errors.UserError(
        f'{options.command} takes no gin bindings: {bindings[0]!r}.'
    )
  return options.command, options, bindings


def _quoted(value: str) -> str:
  """A gin value; text that is none is taken as a string."""
  if value.startswith(('@', '%')):
    return value
  try:
    compile(value, 'value', 'eval')
    names = set(re.findall(r'[A-Za-z_]\w*', re.sub(r"'[^']*'|\"[^\"]*\"", '', value)))
    if names <= {'True', 'False', 'None', 'e', 'E'}:
      return value
  except SyntaxError:
    pass
  return repr(value)


def gin_folder() -> pathlib.Path:
  """The gin files that come with the package."""
  here = pathlib.Path(__file__).resolve().parent
  packaged = here / 'gin_configs'
  return packaged if packaged.is_dir() else here.parent / 'gin_configs'


def _configured(
    command: Command, options: argparse.Namespace, bindings: list[str]
) -> Any:
  """The command's function, all of whose arguments are bound."""
  module_name, name = command.function.split(':')
  if not command.uses_jax:
    if options.run is None:
      raise errors.UserError('--run is missing; name the folder of a run.')
    function = getattr(importlib.import_module(module_name), name)
    return lambda: function(options.run)

  _use_compilation_cache()
  import gin

  module = importlib.import_module(module_name)
  original = getattr(module, name)
  function = gin.external_configurable(
      original, module='.'.join(module_name.split('.')[1:])
  )
  selector = f'{".".join(module_name.split(".")[1:])}.{name}'
  folder = gin_folder()
  for path in (*options.gin_search_paths.split(','), folder, folder.parent):
    gin.add_config_file_search_path(str(path))
  files = [command.gin_file] if command.gin_file else []
  files += options.gin_file
  if options.run is not None:
    bindings = [*bindings, f'{selector}.run = {options.run!r}']
  # gin logs each folder in which a file is not.
  logging.disable(logging.ERROR)
  try:
    gin.parse_config_files_and_bindings(
        files,
        [*options.gin_bindings, *bindings],
        finalize_config=False,
        print_includes_and_imports=False,
    )
    _check_macros(gin.config_str())
  except errors.UserError:
    raise
  except (ValueError, TypeError, SyntaxError, ImportError, OSError,
          AttributeError, RuntimeError, KeyError) as error:  # fmt: skip
    raise errors.UserError(_explain(error, original)) from error
  finally:
    logging.disable(logging.NOTSET)
  configuration.set_current(gin.config_str())
  _check_arguments(gin, original, selector)
  _check_types(gin)
  return function


def _check_macros(text: str) -> None:
  """Raises for macros that are used but have no value.

  Args:
    text: the configuration as gin prints it.
  """
  bound = re.findall(r'^(\w+) = (.*)$', text, re.MULTILINE)
  missing = {name for name, value in bound if value == '%gin.REQUIRED'}
  used = set(re.findall(r'%(\w+)(?![\w.])', text)) - {'gin'}
  missing |= used - {name for name, _ in bound}
  if missing:
    names = sorted(missing)
    raise errors.UserError(
        f'{", ".join(names)} must be set: name a gin file that binds it, or'
        f' give --gin.{names[0]}=VALUE.'
    )


def _check_arguments(gin: Any, function: Any, selector: str) -> None:
  """Raises for arguments of the command's function that nothing binds."""
  missing = []
  for parameter in inspect.signature(function).parameters.values():
    if parameter.default is not inspect.Parameter.empty:
      continue
    try:
      gin.query_parameter(f'{selector}.{parameter.name}')
    except ValueError:
      missing.append(parameter.name)
  if not missing:
    return
  advice = f'bind {selector}.{missing[0]} in a gin file'
  if missing[0] == 'run':
    advice = 'give --run=FOLDER'
  raise errors.UserError(f'{", ".join(missing)} is missing: {advice}.')


# What a value of an annotated argument may be; others are not checked.
_TYPES = {
    'bool': (bool,),
    'float': (int, float),
    'int': (int,),
    'str': (str,),
}


def _check_types(gin: Any) -> None:
  """Raises for values whose type is not the one that is annotated."""
  for name in re.findall(r'^([\w./]+\.\w+) =', gin.config_str(), re.MULTILINE):
    value = gin.query_parameter(name)
    selector, parameter = name.rsplit('.', 1)
    configurable = gin.get_configurable(selector.rsplit('/', 1)[-1])
    annotation = _annotations(configurable).get(parameter, '')
    allowed = _allowed(annotation)
    plain = isinstance(value, (bool, int, float, str)) or value is None
    if allowed is None or not plain:
      continue
    right = isinstance(value, allowed)
    if isinstance(value, bool) and bool not in allowed:
      right = False
    if not right:
      raise errors.UserError(
          f'{name} is {value!r}; it must be of type {annotation}.'
      )


def _annotations(configurable: Any) -> dict[str, str]:
  """Argument -> annotation, of a function or a dataclass."""
  if dataclasses.is_dataclass(configurable):
    return {f.name: str(f.type) for f in dataclasses.fields(configurable)}
  parameters = inspect.signature(configurable).parameters.values()
  return {p.name: str(p.annotation) for p in parameters}


def _allowed(annotation: str) -> tuple[type, ...] | None:
  """The types of an annotation such as 'int | None'; None: anything goes."""
  found: list[type] = []
  for part in annotation.split(' | '):
    if part == 'None':
      found.append(type(None))
    elif part in _TYPES:
      found += _TYPES[part]
    else:
      return None
  return tuple(found)


def _one_line(error: Exception) -> str:
  """The message without what gin adds about where it was raised."""
  return ' '.join(re.split(r'\n\s*In call to configurable', str(error))[0].split())


def _explain(error: Exception, function: Any) -> str:
  """One line on what is wrong with the configuration, and near names."""
  text = ' '.join(str(error).split())
  found = re.search(r"doesn't have a parameter named '(\w+)'", text) or re.search(
      r"No configurable matching '([\w./]+)'", text
  )
  if found:
    known = list(inspect.signature(function).parameters)
    close = difflib.get_close_matches(found.group(1).split('.')[-1], known)
    if close:
      text += f' Did you mean {" or ".join(close)}?'
  if isinstance(error, OSError) and 'open' in text.lower():
    text += f' Files that come with the package are in {gin_folder()}.'
  return f'configuration: {text}'


def _use_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second run starts at once."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  import jax

  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update(
        'jax_compilation_cache_dir',
        str(pathlib.Path(base) / 'distillspec_jax' / 'xla'),
    )
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


if __name__ == '__main__':
  run()
