"""The command line: which command, exit codes, one-line errors, help."""

import pathlib
import re
import subprocess
import sys

import pytest

import distillspec_jax
from distillspec_jax.commands import main


def train(capsys, *arguments: str) -> tuple[int, str]:
  """Exit code and standard error of `distillspec train` of the fixture."""
  bindings = ('--gin.stages.train.num_steps=1', '--run=x')
  code = main.main(['train', *bindings, *arguments])
  return code, capsys.readouterr().err


@pytest.mark.usefixtures('stages')
@pytest.mark.parametrize(
    ('failure', 'code', 'text'),
    [
        ('user', 2, 'distillspec: length is 9; it must be at most 8.\n'),
        (
            'disk',
            1,
            "distillspec: No space left on device: '/full/results.jsonl'\n",
        ),
        (
            'memory',
            1,
            'distillspec: out of memory: Unable to allocate\n',
        ),
        ('failed', 1, 'distillspec: The certificate fails.\n'),
        ('interrupt', 130, 'distillspec: interrupted\n'),
        ('terminate', 143, 'distillspec: terminated\n'),
    ],
)
def test_a_failure_while_running_is_one_line(capsys, failure, code, text):
  flag = f'--gin.stages.train.failure={failure}'
  assert train(capsys, flag) == (code, text)


@pytest.mark.usefixtures('stages')
@pytest.mark.parametrize('failure', ['ours', 'call'])
def test_a_failure_of_ours_keeps_its_traceback(capsys, failure):
  code, error = train(capsys, f'--gin.stages.train.failure={failure}')
  assert code == 1
  assert error.startswith('Traceback') and 'TypeError' in error


def test_report_takes_a_run_and_no_bindings(capsys):
  assert main.main(['report']) == 2
  assert 'required: --run' in capsys.readouterr().err
  assert main.main(['report', '--run=x', '--gin.A=1']) == 2
  assert "report takes no gin bindings: 'A = 1'" in capsys.readouterr().err


def test_unknown_command_and_no_command(capsys):
  assert main.main(['nothing']) == 2
  assert "invalid choice: 'nothing'" in capsys.readouterr().err
  assert main.main([]) == 2
  assert 'quickstart' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['decod'], "choose from 'quickstart', .*Did you mean decode?"),
        (
            ['nothing'],
            r"invalid choice: 'nothing' .*\)\. See distillspec --help",
        ),
        (['decode', 'x'], 'required: --target. See distillspec decode --help.'),
        (
            ['decode', '--target=x', '--top-k=1'],
            'unrecognized arguments: --top-k=1. Did you mean --top_k or',
        ),
        (['decode', '--target=x', '--top_k=a'], "--top_k: invalid int .* 'a'"),
        (['convert', 'x'], 'required: DESTINATION'),
        (['train', '--rum=x'], '--rum=x. Did you mean --run?'),
        (
            ['--run=x'],
            'unrecognized arguments: --run=x. See distillspec --help',
        ),
        (['report', '--run=x', 'y'], 'unrecognized arguments: y. See'),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(capsys, arguments, message):
  assert main.main(arguments) == 2
  printed = capsys.readouterr()
  assert printed.out == ''
  assert printed.err.startswith('distillspec: ')
  assert printed.err.count('\n') == 1
  assert re.search(message, printed.err), printed.err


def test_the_version_is_printed(capsys):
  assert main.main(['--version']) == 0
  assert capsys.readouterr().out == f'{distillspec_jax.__version__}\n'


def test_help_asks_no_command_for_its_flags(capsys, monkeypatch):
  for command in main.COMMANDS.values():
    monkeypatch.setattr(command, 'add_flags', None)
  assert main.main(['--help']) == 0
  assert 'decode' in capsys.readouterr().out


@pytest.mark.parametrize('command', list(main.COMMANDS))
def test_each_command_has_help_with_an_example(capsys, command):
  assert main.main([command, '--help']) == 0
  text = ' '.join(capsys.readouterr().out.split())
  assert f'distillspec {command}' in text and 'example:' in text


@pytest.mark.parametrize(
    'module', ['distillspec_jax', 'distillspec_jax.commands.main']
)
def test_it_runs_as_a_module(module):
  done = subprocess.run(
      [sys.executable, '-m', module, '--help'],
      cwd=pathlib.Path(main.__file__).parents[2],
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('usage: distillspec')
  assert done.stderr == ''
