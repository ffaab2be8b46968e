"""The command line: `distillspec COMMAND`.

This file finds the command and turns errors into one line and an exit code:

  0 done   1 failed   2 bad arguments or configuration
  69 another host was lost   130 interrupted   143 terminated (SIGTERM)

Of several hosts all end with the code of the one that failed first.

Each command is a module: HELP is one line for the list of commands, EXAMPLE a
complete command line, `add_flags(parser)` gives the parser its flags, and
`run(options)` does the work. What a command needs is imported when it is run,
so that help appears at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
import difflib
import re
import shlex
import sys
import traceback
import typing

import distillspec_jax
from distillspec_jax.commands import benchmark
from distillspec_jax.commands import certify
from distillspec_jax.commands import convert
from distillspec_jax.commands import decode
from distillspec_jax.commands import evaluate
from distillspec_jax.commands import experiment
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import plan
from distillspec_jax.commands import quickstart
from distillspec_jax.commands import report
from distillspec_jax.commands import study
from distillspec_jax.commands import train
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts

COMMANDS = {
    'quickstart': quickstart,
    'experiment': experiment,
    'study': study,
    'train': train,
    'evaluate': evaluate,
    'benchmark': benchmark,
    'plan': plan,
    'report': report,
    'decode': decode,
    'certify': certify,
    'convert': convert,
}


def run() -> None:
  """Entry point of the command `distillspec`."""
  sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
  """Runs a command line; returns the exit code."""
  try:
    command, options = parse(arguments)
    configuration.set_command(shlex.join(['distillspec', *arguments]))
    COMMANDS[command].run(options)
  except errors.UserError as error:
    return _ended(2, gin_configuration.message(error))
  except errors.Failed as error:
    return _ended(1, gin_configuration.message(error))
  except errors.Terminated:
    return _ended(143, 'terminated')
  except KeyboardInterrupt:
    return _ended(130, 'interrupted')
  except OSError as error:  # its text names the path
    text = gin_configuration.message(error)
    return _ended(1, re.sub(r'^\[Errno \d+\] ', '', text))
  except MemoryError as error:
    text = gin_configuration.message(error)
    return _ended(1, f'out of memory: {text or "no more could be reserved"}')
  except SystemExit as stop:
    return int(stop.code or 0)
  except Exception as error:
    hosts.await_reason()
    traceback.print_exc()  # a failure of ours: the traceback is the message
    text = gin_configuration.message(error)[:500]
    hosts.leave(1, f'{type(error).__name__}: {text}')
    return 1
  hosts.leave(0)
  return 0


def _ended(code: int, text: str) -> int:
  """Says why the program ends, to people and to the other hosts."""
  print(f'distillspec: {hosts.prefix()}{text}', file=sys.stderr)
  hosts.leave(code, text)
  return code


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
  """The name of the command, and its flags.

  Raises:
    UserError: the arguments are not those of a command.
    SystemExit: help was asked for.
  """
  arguments = gin_configuration.as_flags(arguments)
  parser = _Parser(
      prog='distillspec',
      description='Distilled drafts that make speculative decoding faster.',
  )
  parser.add_argument(
      '--version', action='version', version=distillspec_jax.__version__
  )
  subparsers = parser.add_subparsers(dest='command', metavar='COMMAND')
  for name, command in COMMANDS.items():
    sub = subparsers.add_parser(
        name,
        help=command.HELP,
        description=command.HELP[0].upper() + command.HELP[1:] + '.',
        epilog=f'example: {command.EXAMPLE}',
    )
    if name in arguments:  # only then is imported what has the flags
      command.add_flags(sub)
  options, unknown = parser.parse_known_args(arguments)
  if unknown:
    sub = subparsers.choices[options.command] if options.command else parser
    sub.refuse(unknown)
  if options.command is None:
    parser.print_help()
    raise SystemExit(2)
  return options.command, options


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line; its subparsers are of its class."""

  def error(self, message: str) -> typing.NoReturn:
    command = re.search(r"COMMAND: invalid choice: '(.*?)'", message)
    near = _near(command.group(1), COMMANDS) if command else ''
    raise errors.UserError(f'{message}.{near} See {self.prog} --help.')

  def refuse(self, arguments: Sequence[str]) -> typing.NoReturn:
    """Raises UserError for arguments that the parser does not know."""
    flag, _, value = arguments[0].partition('=')
    if flag == '--gin_bindings':
      raise errors.UserError(f'{self.prog} takes no gin bindings: {value!r}.')
    name = '--' + flag.strip('-').replace('-', '_')
    near = _near(name, re.findall(r'--\w+', self.format_usage()))
    raise errors.UserError(
        f'unrecognized arguments: {" ".join(arguments)}.{near} See'
        f' {self.prog} --help.'
    )


def _near(name: str, known: Collection[str]) -> str:
  """A question for the names that may be meant."""
  close = difflib.get_close_matches(name, known)
  return f' Did you mean {" or ".join(close)}?' if close else ''


if __name__ == '__main__':
  run()
