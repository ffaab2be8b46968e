"""Flags and gin files become a function; what is wrong there is one line."""

import os
import pathlib
import re
import subprocess
import sys

import gin
import pytest

from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import main
from distillspec_jax.core import configuration

N = 'stages.train.num_steps = 1\n'
HEADER = 'from __gin__ import dynamic_registration\nimport stages\n'

pytestmark = pytest.mark.usefixtures('stages')


def write(name: str, text: str) -> str:
  pathlib.Path(name).write_text(HEADER + text)
  return f'--gin_file={name}'


def run(capsys, *arguments: str) -> tuple[int, str]:
  """The exit code and the standard error of `distillspec train ARGUMENTS`."""
  code = main.main(['train', *arguments])
  return code, capsys.readouterr().err


def test_later_files_and_then_flags_win(capsys, stages):
  first = write('first.gin', 'stages.train.num_steps = 1\n')
  second = write('second.gin', 'stages.train.num_steps = 2\n')
  flag = '--gin.stages.train.num_steps=3'
  binding = '--gin_bindings=stages.train.num_steps = 4'
  for arguments in ([first, second], [flag, first], [flag, binding]):
    assert run(capsys, *arguments, '--run=x') == (0, '')
  assert [call[1] for call in stages.calls] == [2, 3, 4]


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('runs/x', 'runs/x'),
        ("'runs/x'", 'runs/x'),
        ('"runs/x"', 'runs/x'),
        ('runs/100%done', 'runs/100%done'),
        ('lenient(linear, 0.5)', 'lenient(linear, 0.5)'),
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
  (flag,) = gin_configuration.as_flags([f'--gin.NAME={text}'])
  gin.parse_config(f'OTHER = 7\n{flag.removeprefix("--gin_bindings=")}')
  macro = 'OTHER' if text.startswith('%') else 'NAME'
  assert gin.query_parameter(f'{macro}/gin.macro.value') == value


def test_a_bucket_is_no_folder_of_a_run(capsys):
  code, error = run(capsys, '--run=gs://bucket/run')
  assert code == 2
  assert 'gs://bucket/run; the folder of a run must be in a file sys' in error


def test_search_paths_and_macros(capsys, stages):
  pathlib.Path('elsewhere').mkdir()
  write('elsewhere/a.gin', 'stages.train.num_steps = %NUM_STEPS\n')
  arguments = (
      '--gin_search_paths=.,elsewhere', '--gin_file=a.gin',
      '--gin.NUM_STEPS=5', '--run=x',
  )  # fmt: skip
  assert run(capsys, *arguments) == (0, '')
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
  file = write('a.gin', 'stages.train.num_steps = %N\nN = 6\n')
  assert run(capsys, file, '--run=x') == (0, '')
  text = configuration.current().text
  pathlib.Path('again.gin').write_text(text)
  gin.clear_config()
  assert run(capsys, '--gin_file=again.gin') == (0, '')
  assert stages.calls[0] == stages.calls[1]
  assert configuration.current().text == text


def test_groups_are_made_in_the_scope_that_they_are_named_in(capsys, stages):
  file = write(
      'a.gin',
      N + """
stages.train.group = @small/stages.Group()
stages.Group.method = @stages.Method()
stages.Group.size = 9
stages.Method.divergence = 'jsd'
small/stages.Group.size = 1
small/stages.Method.beta = 0.25
""",
  )
  assert run(capsys, file, '--run=x') == (0, '')
  method = stages.Method('jsd', 0.25)
  assert stages.calls[0][-1] == stages.Group(1, method)


def test_a_misspelt_parameter_names_file_line_and_near_names(capsys):
  code, error = run(capsys, write('a.gin', 'stages.train.num_step = 1\n'))
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
        ('import my_rules', "No module named 'my_rules'. .* working folder /"),
        ('stages.train.num_steps = = 1', "a.gin:3: .*in 'stages.train.num_"),
        ('stages.train.num_steps = %N', 'N must be set: .*--gin.N=VALUE'),
        ('A = %N\nstages.train.num_steps = %A', ': N must be set'),
        (
            'A = %gin.REQUIRED\nstages.train.num_steps = %A',
            ': A must be set: .*--gin.A=VALUE',
        ),
        (
            'stages.train.num_steps = %gin.REQUIRED',
            ': stages.train.num_steps must be set',
        ),
        ('', 'num_steps of stages.train is missing: bind stages.train.num_s'),
        ("stages.train.num_steps = 'x'", "num_steps is 'x'; it must be int"),
        ('stages.train.num_steps = 1.5', 'num_steps is 1.5; it must be int'),
        ('stages.train.num_steps = True', 'is True; it must be int'),
        (N + 'stages.train.batch_sizes = 3', 'is 3; it must be .*Sequence'),
        ("N = 'x'\nstages.train.num_steps = %N", "is %N = 'x'; it must be int"),
        (
            N + 'stages.train.method = @stages.Method()',
            'divergence of stages.Method is missing: bind stages.Method.div',
        ),
        (
            N + 'stages.train.group = @a/stages.Group()\n'
            'a/stages.Group.size = 1\n'
            'stages.Group.method = @stages.Method()\n'
            "b/stages.Method.divergence = 'jsd'",
            'divergence of a/stages.Method is missing',
        ),
        (
            N + 'stages.train.group = @stages.Group()\n'
            "stages.Group.size = 'x'",
            "stages.Group.size is 'x'; it must be int",
        ),
        (
            N + 'stages.train.anything = {1: [@stages.Method()]}',
            'divergence of stages.Method is missing',
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
  code, error = run(capsys, write('a.gin', binding + '\n'), '--run=x')
  assert code == 2
  assert error.startswith('distillspec: ') and error.count('\n') == 1, error
  assert stages.calls == []
  assert re.search(message, error), error


@pytest.mark.parametrize(
    'binding',
    [
        'stages.train.stage = @stages.loss',  # its logits come from the caller
        'stages.train.anything = @stages.loss',
        'stages.train.anything = (1, "a")',
        'stages.train.batch_sizes = [1, 2]',
        'UNUSED = %gin.REQUIRED',
        'unused/stages.Group.size = 1',
        'stages.train.method = None',
    ],
)
def test_a_right_configuration_is_not_refused(capsys, binding):
  file = write('a.gin', f'{N}{binding}\n')
  assert run(capsys, file, '--run=x') == (0, '')


@pytest.mark.parametrize(
    ('flag', 'is_used'),
    [
        ('small/stages.Group.size=2', True),
        ('stages.Method.beta=0.5', True),
        ('MACRO=1', True),
        ('smal/stages.Group.size=2', False),
        ('small/stages.other.steps=2', False),
    ],
)
def test_a_flag_for_what_is_not_called_is_said(capsys, flag, is_used):
  file = write(
      'a.gin',
      N + """
stages.train.group = @small/stages.Group()
small/stages.Group.size = 1
small/stages.Group.method = @stages.Method()
stages.Method.divergence = 'jsd'
stages.other.steps = 1
""",
  )
  code, error = run(capsys, file, '--run=x', f'--gin.{flag}')
  assert code == 0
  name = flag.partition('=')[0]
  expected = f'distillspec: {name} is bound, but not used here.\n'
  assert error == ('' if is_used else expected)


def test_a_group_of_another_class_is_refused(capsys):
  text = """
from distillspec_jax.training import settings
stages.train.num_steps = 1
stages.train.anything = @settings.Training()
settings.Training.start = @settings.Steps()
settings.Training.steps = @settings.Steps()
settings.Steps.num_steps = 1
"""
  code, error = run(capsys, write('a.gin', text), '--run=x')
  assert code == 2
  assert 'settings.Training.start is @settings.Steps(); it must be St' in error


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--gin.num_steps'], '--gin.num_steps has no value'),
        (['--gin_file=none.gin'], 'Unable to open file: none.gin'),
        (['--gin.trian.run=1'], "'trian'.*Did you mean train"),
        (['--gin.stages.train.num_step=1'], 'Did you mean num_steps'),
        (
            ['--gin.stages.train.num_steps=1'],
            'run of stages.train is missing: give --run',
        ),
        (['--gin_bindings=x=='], "in 'x=='"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(capsys, arguments, message):
  code, error = run(capsys, *arguments)
  assert code == 2
  assert error.count('\n') == 1 and 'Traceback' not in error
  assert re.search(message, error), error
