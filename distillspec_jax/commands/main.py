"""The command line: `distillspec COMMAND`, one command a stage.

This file alone knows of gin. It reads flags and gin files, finds the function
of the command, and turns errors into one line and an exit code:

  0 done   1 failed   2 bad arguments or configuration
  69 another host was lost   130 interrupted   143 terminated (SIGTERM)

Of several hosts all end with the code of the one that failed first.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Collection, Sequence
import contextlib
import difflib
import importlib
import inspect
import os
import pathlib
import re
import sys
import traceback
import types
import typing
from typing import Any, NamedTuple

from distillspec_jax.commands import flags
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts


class Command(NamedTuple):
  """A command: the function it calls, 'module:name', and what it says."""

  function: str
  help: str
  example: str
  gin_file: str | None = None  # read first
  uses_gin: bool = True  # otherwise the function's parameters are flags
  uses_jax: bool = True
  several_hosts: bool = False  # may run on
  on_mesh: bool = False  # the models may lie on several devices
  lists: tuple[str, ...] = ()  # parameters that are flags, too, with gin


COMMANDS = {
    'quickstart': Command(
        'distillspec_jax.studies.experiment:run_experiment',
        'the whole story on embedded data, in minutes, on a laptop: fine-tune a'
        ' target and a draft, distil, measure, report',
        'distillspec quickstart --run=runs/quickstart',
        'experiments/quickstart.gin',
        several_hosts=True,
    ),
    'experiment': Command(
        'distillspec_jax.studies.experiment:run_experiment',
        'all stages of an experiment file; finished ones are not done again',
        'distillspec experiment --gin_file=experiments/gsm8k.gin'
        ' --run=runs/gsm8k',
        several_hosts=True,
    ),
    'train': Command(
        'distillspec_jax.training.loop:train',
        'supervised fine-tuning or distillation, as the gin files say; goes on'
        ' by itself where it was stopped',
        'distillspec train --gin_file=models/micro.gin'
        ' --gin_file=tasks/python.gin --gin_file=methods/fine_tune.gin'
        ' --gin_file=runs/train.gin --gin.NUM_STEPS=500 --run=runs/target',
        several_hosts=True,
    ),
    'evaluate': Command(
        'distillspec_jax.evaluation.acceptance:evaluate',
        'acceptance rate, block efficiency and task quality of a pair',
        'distillspec evaluate --gin_file=tasks/python.gin'
        ' --gin_file=runs/evaluate.gin --run=runs/measured'
        ' --gin.TARGET=runs/target --gin.DRAFT=runs/draft',
        several_hosts=True,
        on_mesh=True,
    ),
    'benchmark': Command(
        'distillspec_jax.evaluation.speed.latency:benchmark',
        'wall clock: autoregressive and speculative, over batch and block'
        ' lengths',
        'distillspec benchmark --gin_file=tasks/python.gin'
        ' --gin_file=runs/benchmark.gin --run=runs/measured'
        ' --gin.TARGET=runs/target --gin.DRAFT=runs/draft',
        several_hosts=True,
        on_mesh=True,
    ),
    'plan': Command(
        'distillspec_jax.planning.plan:plan',
        'what a run needs on TPU slices, without having one: memory, time,'
        ' exchanges between chips, by the TPU compiler',
        'distillspec plan --topology=v5e-256 --gin.TARGET=t5_1_1_xl'
        ' --gin.DRAFT=t5_1_1_small',
        'runs/plan.gin',
        lists=('topology',),
    ),
    'report': Command(
        'distillspec_jax.reporting.report:report',
        'result files -> a self-contained HTML page, PNG figures, Markdown'
        ' tables',
        'distillspec report --run=runs/quickstart',
        uses_gin=False,
        uses_jax=False,
    ),
    'decode': Command(
        'distillspec_jax.commands.decode:decode',
        'text in, text out: arguments, a file, standard input, or a prompt',
        "distillspec decode --target=flan-t5-large --draft=runs/draft 'Who?'",
        uses_gin=False,
        on_mesh=True,
    ),
    'certify': Command(
        'distillspec_jax.evaluation.certificate:certify',
        "is the output of this pair, on this device, the target's own? exit"
        ' code 1 if not',
        'distillspec certify --target=flan-t5-large --draft=runs/draft',
        uses_gin=False,
        on_mesh=True,
    ),
    'convert': Command(
        'distillspec_jax.checkpoints.convert:convert',
        'between Hugging Face, t5x and own checkpoints; compares both sides',
        'distillspec convert runs/draft flan-distilled --to=hugging_face',
        uses_gin=False,
    ),
}


def run() -> None:
  """Entry point of the command `distillspec`."""
  sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
  """Runs a command line; returns the exit code."""
  try:
    command, options, bindings = _parse(arguments)
    shows = True
    if COMMANDS[command].uses_gin:
      function = _configured(COMMANDS[command], options, bindings)
      if COMMANDS[command].several_hosts:
        shows = _start_hosts(options)
      with _mesh(options):
        made = function()
    else:
      if COMMANDS[command].uses_jax:
        _use_compilation_cache()
      with _mesh(options):
        made = flags.call(_function(COMMANDS[command]), options)
    if isinstance(made, (str, os.PathLike)) and shows:
      print(made)  # the folder or page that the command leaves
  except errors.UserError as error:
    return _ended(2, _one_line(error))
  except errors.Failed as error:
    return _ended(1, _one_line(error))
  except errors.Terminated:
    return _ended(143, 'terminated')
  except KeyboardInterrupt:
    return _ended(130, 'interrupted')
  except OSError as error:  # its text names the path
    return _ended(1, re.sub(r'^\[Errno \d+\] ', '', _one_line(error)))
  except SystemExit as stop:
    return int(stop.code or 0)
  except Exception as error:
    missing = _missing_arguments(error)
    if missing:
      return _ended(2, missing)
    hosts.await_reason()
    traceback.print_exc()  # a failure of ours: the traceback is the message
    hosts.leave(1, f'{type(error).__name__}: {_one_line(error)[:500]}')
    return 1
  hosts.leave(0)
  return 0


def _ended(code: int, text: str) -> int:
  """Says why the program ends, to people and to the other hosts."""
  print(f'distillspec: {hosts.prefix()}{text}', file=sys.stderr)
  hosts.leave(code, text)
  return code


def _mesh(options: argparse.Namespace) -> contextlib.AbstractContextManager:
  """Within it, models are laid out on the mesh of --mesh."""
  if getattr(options, 'mesh', None) is None:
    return contextlib.nullcontext()
  from distillspec_jax.distributed import mesh

  return mesh.using(options.mesh)


def _start_hosts(options: argparse.Namespace) -> bool:
  """Waits for the other hosts, if there are any; whether this is the first."""
  place = hosts.find(
      options.coordinator,
      options.process_count,
      options.process_index,
      options.start_timeout,
  )
  if place is not None:
    hosts.start(place, options.start_timeout, options.heartbeat_timeout)
  return place is None or place.index == 0


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
  parser = _Parser(
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
    if command.uses_gin:
      sub.add_argument('--run', metavar='FOLDER', help='folder of the results')
      for flag in command.lists:
        sub.add_argument(
            f'--{flag}',
            action='append',
            default=[],
            metavar='NAME,...',
            help='several with commas between, or the flag several times',
        )
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
      if command.several_hosts:
        _add_hosts(sub)
    elif name in rest:  # only then its module is imported
      flags.add(sub, _function(command))
    if command.on_mesh:
      sub.add_argument(
          '--mesh',
          metavar='DATA,FSDP,TENSOR',
          help='spreads models and rows over all devices: sizes of the mesh,'
          ' DATA -1 for what is left; default: one device',
      )
  options, unknown = parser.parse_known_args(rest)
  if unknown:
    sub = subparsers.choices[options.command] if options.command else parser
    sub.refuse(unknown)
  if options.command is None:
    parser.print_help()
    raise SystemExit(2)
  if bindings and not COMMANDS[options.command].uses_gin:
    raise errors.UserError(
        f'{options.command} takes no gin bindings: {bindings[0]!r}.'
    )
  return options.command, options, bindings


def _add_hosts(parser: argparse.ArgumentParser) -> None:
  """Gives the parser the flags of several hosts."""
  group = parser.add_argument_group(
      'several hosts',
      'Start the same command on each. On TPU slices and under Slurm and Open'
      ' MPI they find each other; elsewhere give the first three.',
  )
  group.add_argument(
      '--coordinator',
      metavar='HOST:PORT',
      help='address of process 0, that the others can reach; default:'
      ' JAX_COORDINATOR_ADDRESS',
  )
  group.add_argument(
      '--process_count',
      type=int,
      metavar='N',
      help='how many processes, one a host; default: JAX_NUM_PROCESSES. 1 is'
      ' this host alone',
  )
  group.add_argument(
      '--process_index',
      type=int,
      metavar='I',
      help='which of them this is, from 0; default: JAX_PROCESS_ID',
  )
  group.add_argument(
      '--start_timeout',
      type=float,
      default=300.0,
      metavar='SECONDS',
      help='how long to wait for the other hosts (%(default)g)',
  )
  group.add_argument(
      '--heartbeat_timeout',
      type=float,
      default=100.0,
      metavar='SECONDS',
      help='a host that is silent for so long is lost, and all others end with'
      ' exit code 69; one whose process dies is noticed at once (%(default)g)',
  )


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line; its subparsers are of its class."""

  def error(self, message: str) -> typing.NoReturn:
    command = re.search(r"COMMAND: invalid choice: '(.*?)'", message)
    near = _near(command.group(1), COMMANDS) if command else ''
    raise errors.UserError(f'{message}.{near} See {self.prog} --help.')

  def refuse(self, arguments: Sequence[str]) -> typing.NoReturn:
    """Ends the program for arguments that are none of its own."""
    name = '--' + arguments[0].partition('=')[0].strip('-').replace('-', '_')
    near = _near(name, re.findall(r'--\w+', self.format_usage()))
    raise errors.UserError(
        f'unrecognized arguments: {" ".join(arguments)}.{near} See'
        f' {self.prog} --help.'
    )


def _near(name: str, known: Collection[str]) -> str:
  """A question for the names that are meant, perhaps."""
  close = difflib.get_close_matches(name, known)
  return f' Did you mean {" or ".join(close)}?' if close else ''


def _quoted(value: str) -> str:
  """A gin value; text that is none is taken as a string."""
  if re.match(r'[@%(\[{]', value):  # references, or may hold some
    return value
  try:
    ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return repr(value)
  return value


def gin_folder() -> pathlib.Path:
  """The gin files that come with the package."""
  here = pathlib.Path(__file__).resolve().parents[1]
  packaged = here / 'gin_configs'
  return packaged if packaged.is_dir() else here.parent / 'gin_configs'


def _function(command: Command) -> Any:
  module, name = command.function.split(':')
  return getattr(importlib.import_module(module), name)


def _configured(
    command: Command, options: argparse.Namespace, bindings: list[str]
) -> Any:
  """The command's function, all of whose arguments are bound."""
  _use_compilation_cache()
  import gin

  module_name, name = command.function.split(':')
  original = _function(command)
  # Under the name that `import` in a gin file gives it.
  function = gin.external_configurable(original, module=module_name)
  selector = f'{module_name.removeprefix("distillspec_jax.")}.{name}'
  folder = gin_folder()
  for path in (*options.gin_search_paths.split(','), folder, folder.parent):
    gin.add_config_file_search_path(str(path))
  files = [command.gin_file] if command.gin_file else []
  files += options.gin_file
  if options.run is not None:
    if '://' in options.run:
      raise errors.UserError(
          f'--run is {options.run}; the folder of a run is one of a file'
          ' system. Mount the bucket, or copy the folder there when the run is'
          ' done.'
      )
    bindings = [*bindings, f'{selector}.run = {options.run!r}']
  for flag in command.lists:
    if getattr(options, flag):
      value = ','.join(getattr(options, flag))
      bindings = [*bindings, f'{selector}.{flag} = {value!r}']
  # gin's other reader takes runs/x.gin for a file of a package named `runs`,
  # and fails if the working folder has a folder of that name.
  del gin.config._FILE_READERS[1:]
  try:
    gin.parse_config_files_and_bindings(
        files,
        [*options.gin_bindings, *bindings],
        finalize_config=False,
        print_includes_and_imports=False,
    )
  except _GIN_ERRORS as error:
    raise errors.UserError(_explain(gin, error, selector)) from error
  text = gin.config_str()
  _check_macros(text)
  _check_arguments(gin, text, selector)
  _check_types(gin, text)
  configuration.set_current(text)
  return function


# What gin raises for a wrong file or binding, besides errors of ours.
_GIN_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def _check_macros(text: str) -> None:
  """Raises for names that are used, or required, but have no value.

  Args:
    text: the configuration as gin prints it.
  """
  # Text between quotes may hold a % of its own.
  text = re.sub(r"'(\\.|[^'\\\n])*'|\"(\\.|[^\"\\\n])*\"", "''", text)
  bound = re.findall(r'^([\w./]+) =\s+(.*)$', text, re.MULTILINE)
  missing = {name for name, value in bound if value == '%gin.REQUIRED'}
  used = set(re.findall(r'%(\w+)(?![\w.])', text))
  missing |= used - {name for name, _ in bound}
  if missing:
    names = sorted(missing)
    raise errors.UserError(
        f'{", ".join(names)} must be set: name a gin file that binds it, or'
        f' give --gin.{names[0]}=VALUE.'
    )


# What an experiment itself passes to the stages that it is given.
_PASSED_ON = frozenset(
    ('run', 'task', 'seed', 'initial', 'target', 'draft', 'draft_name')
)


def _check_arguments(gin: Any, text: str, selector: str) -> None:
  """Raises for required arguments that nothing binds, before work starts.

  Args:
    gin: the module.
    text: the configuration as gin prints it.
    selector: of the command's function.
  """
  needs = [('', selector, frozenset())]
  for scope, name, call in re.findall(
      r'@((?:\w+/)*)([A-Za-z_][\w.]*)(\(\))?', text
  ):
    needs.append((scope, name, frozenset() if call else _PASSED_ON))
  for scope, name, given in needs:
    parameters = _parameters(gin.get_configurable(name))
    if given and 'run' not in parameters:  # not a stage, e.g. a metric
      continue
    missing = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind
        not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in given
        and not _is_bound(gin, scope, f'{name}.{parameter.name}')
    ]
    if not missing:
      continue
    advice = f'bind {scope}{name}.{missing[0]} in a gin file'
    if missing[0] == 'run':
      advice = 'give --run=FOLDER'
    verb = 'is' if len(missing) == 1 else 'are'
    raise errors.UserError(
        f'{", ".join(missing)} of {scope}{name} {verb} missing: {advice}.'
    )


def _parameters(configurable: Any) -> dict[str, inspect.Parameter]:
  """Those of a function, or of making an instance of a class."""
  if not isinstance(configurable, type):
    return dict(inspect.signature(configurable).parameters)
  parameters = dict(inspect.signature(configurable.__init__).parameters)
  del parameters['self']
  return parameters


def _is_bound(gin: Any, scope: str, name: str) -> bool:
  """Whether `name` has a value in the scope 'a/b/' or in one around it."""
  parts = scope.split('/')[:-1]
  for depth in range(len(parts) + 1):
    try:
      gin.query_parameter('/'.join([*parts[:depth], name]))
      return True
    except ValueError:
      continue
  return False


def _check_types(gin: Any, text: str) -> None:
  """Raises for values whose type is not the one that is annotated."""
  names = re.findall(r'^([\w./]+\.\w+) =', text, re.MULTILINE)
  for name in names:
    selector, parameter = name.rsplit('.', 1)
    annotations = _annotations(gin.get_configurable(selector.split('/')[-1]))
    value = gin.query_parameter(name)
    macro = re.fullmatch(r'%(\w+)', str(value))
    if macro:
      value = gin.query_parameter(f'{macro.group(1)}/gin.macro.value')
      name = f'{name} = {macro.group()}'
    if parameter not in annotations or _fits(value, annotations[parameter]):
      continue
    annotation = annotations[parameter]
    wanted = annotation.__name__ if isinstance(annotation, type) else annotation
    raise errors.UserError(f'{name} is {value!r}; it must be {wanted}.')


def _annotations(configurable: Any) -> dict[str, Any]:
  """Argument -> type, of a function or a dataclass."""
  try:
    return typing.get_type_hints(configurable)
  except NameError:  # an annotation for readers, not for programs
    return {}


def _fits(value: Any, annotation: Any) -> bool:
  """Whether a plain value is of an annotated type; others are not checked."""
  plain = (bool, int, float, str, tuple, list, dict, type(None))
  if not isinstance(value, plain) or annotation is Any:
    return True
  origin = typing.get_origin(annotation)
  if origin in (types.UnionType, typing.Union):
    parts = typing.get_args(annotation)
    return any(_fits(value, part) for part in parts)
  if origin is typing.Literal:
    return value in typing.get_args(annotation)
  kind = annotation if origin is None else origin
  if not isinstance(kind, type):
    return True
  if isinstance(value, bool):
    return kind is bool
  if isinstance(value, str):  # a sequence too, but never meant as one
    return kind is str
  if kind is float:
    return isinstance(value, (int, float))
  if isinstance(value, list) and kind is tuple:
    return True
  return isinstance(value, kind)


def _one_line(error: Exception) -> str:
  """The message without what gin adds about where it was raised."""
  text = re.split(r'\n\s*In call to configurable', str(error))[0]
  return ' '.join(text.split())


def _missing_arguments(error: Exception) -> str:
  """One line, if the error is that a configured call lacks arguments."""
  found = re.search(
      r'(\w+)(?:\.__init__)?\(\) missing \d+ required [\w -]+: (.*)\n'
      r"(?:.*\n)*?\s*In call to configurable '\1'",
      str(error),
  )
  if found is None or not isinstance(error, TypeError):
    return ''
  name, arguments = found.groups()
  return f'{arguments} of {name} must be set; bind it in a gin file.'


def _explain(gin: Any, error: Exception, selector: str) -> str:
  """One line on what is wrong with the configuration, where, and near names."""
  text, _, place = str(error).partition('\n  In ')
  text = ' '.join(text.split())
  if isinstance(error, SyntaxError):
    text = f'{error.msg.rstrip(".")} in {(error.text or "").strip()!r}.'
    if error.filename:
      text = f'{error.filename}:{error.lineno}: {text}'
  where = re.match(r'file "(.+)", line (\d+)', place)
  if where:
    text = f'{where.group(1)}:{where.group(2)}: {text}'
  elif place:
    text += f' Given as {place.splitlines()[1].strip()!r}.'
  close = _close_names(gin, text, selector)
  if close:
    text += f' Did you mean {" or ".join(close)}?'
  if isinstance(error, OSError) and 'Unable to open file' in text:
    text = text.split(' Searched')[0]
    text += (
        ' It is looked for here, in --gin_search_paths and in'
        f' {gin_folder()}; name one of those files.'
    )
  return f'configuration: {text}'


def _close_names(gin: Any, text: str, selector: str) -> list[str]:
  """Names like the one that an error complains of."""
  parameter = re.search(
      r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", text
  )
  if parameter:
    configurable = gin.get_configurable(parameter.group(1))
    known = list(_parameters(configurable))
    return difflib.get_close_matches(parameter.group(2), known)
  unknown = re.search(r"No configurable matching '([\w./]+)'", text)
  if unknown:
    bound = re.findall(r'^(?:\w+/)*([\w.]+)\.\w+ =', gin.config_str(), re.M)
    known = {selector.rsplit('.', 1)[-1], selector, *bound}
    known |= {name.rsplit('.', 1)[-1] for name in bound}
    return difflib.get_close_matches(unknown.group(1), sorted(known))
  attribute = re.search(r"<module '([\w.]+)'.*> has no attribute (\w+)", text)
  if attribute:
    module = importlib.import_module(attribute.group(1))
    return difflib.get_close_matches(attribute.group(2), dir(module))
  return []


def _use_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second run starts at once."""
  import jax

  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update(
        'jax_compilation_cache_dir',
        str(pathlib.Path(base) / 'distillspec_jax' / 'xla'),
    )
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


if __name__ == '__main__':
  run()
