"""Tests of the command line: flags, gin files, one-line errors, exit codes."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import gin
import jax
import pytest

from distillspec_jax.commands import main
from distillspec_jax.core import configuration

N = 'stages.train.num_steps = 1\n'
HEADER = 'from __gin__ import dynamic_registration\nimport stages\n'

# A stage that records its arguments, or fails as it is told.
STAGES = """
import dataclasses
from collections.abc import Callable, Sequence
from distillspec_jax.core import errors

calls = []

@dataclasses.dataclass(frozen=True)
class Method:
  divergence: str
  beta: float = 0.5

def other(*, run: str, steps: int):
  return f'{run} {steps}'

def needs_two(one, two):
  return one + two

def train(
    *,
    run: str,
    num_steps: int,
    batch_sizes: Sequence[int] = (1,),
    method: Method | None = None,
    stage: Callable[..., str] | None = None,
    failure: str | None = None,
):
  calls.append((run, num_steps, batch_sizes, method))
  if failure == 'user':
    raise errors.UserError('length is 9; it must be at most 8.')
  if failure == 'disk':
    raise OSError(28, 'No space left on device', '/full/results.jsonl')
  if failure == 'interrupt':
    raise KeyboardInterrupt
  if failure == 'terminate':
    raise errors.Terminated
  if failure == 'ours':
    raise TypeError('unsupported operand')
  if failure == 'call':
    needs_two(1)
"""


@pytest.fixture(name='stages', autouse=True)
def _stages(monkeypatch, tmp_path):
  """A module whose function is the command `train`; gin forgets it after."""
  (tmp_path / 'stages.py').write_text(STAGES)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'stages', raising=False)
  importlib.invalidate_caches()
  monkeypatch.setitem(
      main.COMMANDS,
      'train',
      main.COMMANDS['train']._replace(function='stages:train'),
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  before = configuration.current()
  cache = jax.config.jax_compilation_cache_dir
  seconds = jax.config.jax_persistent_cache_min_compile_time_secs
  gin.enter_interactive_mode()  # or it refuses the next test's module
  yield importlib.import_module('stages')
  gin.exit_interactive_mode()
  gin.clear_config()
  monkeypatch.delitem(sys.modules, 'stages')
  configuration.set_current(before.text)
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)


def _write(name: str, text: str) -> str:
  pathlib.Path(name).write_text(HEADER + text)
  return f'--gin_file={name}'


def _run(capsys, *arguments: str) -> tuple[int, str]:
  """The exit code and the standard error of `distillspec train ARGUMENTS`."""
  code = main.main(['train', *arguments])
  return code, capsys.readouterr().err


def test_later_files_and_then_flags_win(capsys, stages):
  first = _write('first.gin', 'stages.train.num_steps = 1\n')
  second = _write('second.gin', 'stages.train.num_steps = 2\n')
  assert _run(capsys, first, second, '--run=a') == (0, '')
  assert _run(capsys, first, '--gin.stages.train.num_steps=3', '--run=b') == (
      0,
      '',
  )
  binding = '--gin_bindings=stages.train.num_steps = 4'
  assert _run(capsys, first, binding, '--run=c') == (0, '')
  assert [call[:2] for call in stages.calls] == [('a', 2), ('b', 3), ('c', 4)]


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('runs/x', 'runs/x'),
        ("'runs/x'", 'runs/x'),
        ('"runs/x"', 'runs/x'),
        ('runs/100%done', 'runs/100%done'),
        ('None', None),
        ('1e5', 1e5),
        ('-3', -3),
        ('(2, 5)', (2, 5)),
        ('True', True),
        ('two words', 'two words'),
        ('%OTHER', 7),
    ],
)
def test_a_flag_is_a_gin_value_or_else_a_string(text, value):
  gin.parse_config(f'OTHER = 7\nNAME = {main._quoted(text)}')
  found = gin.query_parameter('NAME/gin.macro.value')
  if text.startswith('%'):
    found = gin.query_parameter('OTHER/gin.macro.value')
  assert found == value


def test_a_bucket_is_no_folder_of_a_run(capsys):
  code, said = _run(capsys, '--run=gs://bucket/run')
  assert code == 2
  assert 'gs://bucket/run; the folder of a run is one of a file system' in said


def test_search_paths_and_macros(capsys, stages):
  folder = pathlib.Path('elsewhere')
  folder.mkdir()
  _write('elsewhere/a.gin', 'stages.train.num_steps = %NUM_STEPS\n')
  code, error = _run(
      capsys,
      '--gin_search_paths=.,elsewhere',
      '--gin_file=a.gin',
      '--gin.NUM_STEPS=5',
      '--run=x',
  )
  assert (code, error) == (0, '')
  assert stages.calls[0][1] == 5


def test_the_files_of_the_package_are_found_from_any_folder():
  # Not in this process, which has given the name `train` to another function.
  root = pathlib.Path(main.__file__).parents[2]
  pathlib.Path('runs').mkdir()  # which is not where runs/train.gin is
  done = subprocess.run(
      [sys.executable, '-m', 'distillspec_jax', 'train', '--run=x']
      + ['--gin_file=runs/train.gin', '--gin_file=gin_configs/models/nano.gin'],
      env={**os.environ, 'PYTHONPATH': str(root)},
      capture_output=True,
      text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(
      'distillspec: METHOD, NUM_STEPS, TASK must be set:'
  )


def test_the_configuration_of_the_process_can_be_parsed_again(capsys, stages):
  file = _write('a.gin', 'stages.train.num_steps = %N\nN = 6\n')
  assert _run(capsys, file, '--run=x') == (0, '')
  text = configuration.current().text
  pathlib.Path('again.gin').write_text(text)
  gin.clear_config()
  assert _run(capsys, '--gin_file=again.gin') == (0, '')
  assert stages.calls[0] == stages.calls[1]
  assert configuration.current().text == text


def test_a_misspelt_parameter_names_file_line_and_near_names(capsys):
  code, error = _run(capsys, _write('a.gin', 'stages.train.num_step = 1\n'))
  assert code == 2
  assert error == (
      "distillspec: configuration: a.gin:3: Configurable 'stages.train' doesn't"
      " have a parameter named 'num_step'. Did you mean num_steps?\n"
  )


@pytest.mark.parametrize(
    ('binding', 'message'),
    [
        ('stages.trian.run = 1', 'a.gin:3: .*has no attribute trian.*train?'),
        ('import stages.none', 'a.gin:3: .*stages.none'),
        ('stages.train.num_steps = = 1', "a.gin:3: .*in 'stages.train.num_"),
        ('stages.train.num_steps = %N', 'N must be set: .*--gin.N=VALUE'),
        (
            'stages.train.num_steps = %gin.REQUIRED',
            'stages.train.num_steps must be set',
        ),
        ('', 'num_steps of stages.train is missing: bind stages.train.num_s'),
        ("stages.train.num_steps = 'x'", "num_steps is 'x'; it must be int"),
        ('stages.train.num_steps = 1.5', 'num_steps is 1.5; it must be int'),
        ('stages.train.num_steps = True', 'is True; it must be int'),
        (N + 'stages.train.batch_sizes = 3', 'is 3; it must be .*Sequence'),
        ("N = 'x'\nstages.train.num_steps = %N", "= %N is 'x'; it must be int"),
        (
            N + 'stages.train.method = @stages.Method()',
            'divergence of .*Method',
        ),
        (
            N + 'stages.train.stage = @a/stages.other',
            'steps of a/stages.other is missing',
        ),
        (
            N + "stages.train.method = 'jsd'",
            "method is 'jsd'; it must be .*Method",
        ),
        ("include 'none.gin'", 'a.gin:3: Unable to open file: none.gin'),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(
    capsys, stages, binding, message
):
  code, error = _run(capsys, _write('a.gin', binding + '\n'), '--run=x')
  assert code == 2
  assert error.startswith('distillspec: ') and error.count('\n') == 1, error
  assert stages.calls == []
  assert re.search(message, error), error


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--gin.num_steps'], '--gin.num_steps has no value'),
        (['--gin_file=none.gin'], 'Unable to open file: none.gin'),
        (['--gin.trian.run=1'], "'trian'.*Did you mean train"),
        (['--gin.stages.train.num_step=1'], 'Did you mean num_steps'),
        (['--gin.stages.train.num_steps=1'], 'give --run=FOLDER'),
        (['--gin_bindings=x=='], "in 'x=='"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(capsys, arguments, message):
  code, error = _run(capsys, *arguments)
  assert code == 2
  assert error.count('\n') == 1 and 'Traceback' not in error
  assert re.search(message, error), error


@pytest.mark.parametrize(
    ('failure', 'code', 'text'),
    [
        ('user', 2, 'distillspec: length is 9; it must be at most 8.\n'),
        (
            'disk',
            1,
            "distillspec: No space left on device: '/full/results.jsonl'\n",
        ),
        ('interrupt', 130, 'distillspec: interrupted\n'),
        ('terminate', 143, 'distillspec: terminated\n'),
    ],
)
def test_a_failure_while_running_is_one_line(capsys, failure, code, text):
  file = _write('a.gin', f"stages.train.num_steps = 1\nF = '{failure}'\n")
  arguments = (file, '--gin.stages.train.failure=%F', '--run=x')
  assert _run(capsys, *arguments) == (code, text)


@pytest.mark.parametrize('failure', ['ours', 'call'])
def test_a_failure_of_ours_keeps_its_traceback(capsys, failure):
  flags = (
      '--gin.stages.train.num_steps=1',
      f'--gin.stages.train.failure={failure}',
  )
  code, error = _run(capsys, *flags, '--run=x')
  assert code == 1
  assert error.startswith('Traceback') and 'TypeError' in error


def test_report_takes_a_run_and_no_bindings(capsys):
  assert main.main(['report']) == 2
  assert 'required: --run' in capsys.readouterr().err
  assert main.main(['report', '--run=x', '--gin.A=1']) == 2
  assert 'takes no gin bindings' in capsys.readouterr().err


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
def test_flags_that_are_none_are_one_line(capsys, arguments, message):
  assert main.main(arguments) == 2
  said = capsys.readouterr()
  assert said.out == ''
  assert said.err.startswith('distillspec: ') and said.err.count('\n') == 1
  assert re.search(message, said.err), said.err


def test_help_looks_into_no_command(capsys, monkeypatch):
  monkeypatch.setattr(main, '_function', None)
  assert main.main(['--help']) == 0
  assert 'decode' in capsys.readouterr().out


@pytest.mark.parametrize('command', list(main.COMMANDS))
def test_each_command_has_help_with_an_example(capsys, command):
  assert main.main([command, '--help']) == 0
  text = ' '.join(capsys.readouterr().out.split())
  assert f'distillspec {command}' in text and 'example:' in text


def test_compiled_programs_are_kept_unless_told_otherwise(
    monkeypatch, tmp_path
):
  main._use_compilation_cache()
  folder = tmp_path / 'cache' / 'distillspec_jax' / 'xla'
  assert jax.config.jax_compilation_cache_dir == str(folder)
  jax.config.update('jax_compilation_cache_dir', 'mine')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'mine')
  main._use_compilation_cache()
  assert jax.config.jax_compilation_cache_dir == 'mine'


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
