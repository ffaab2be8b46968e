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
from distillspec_jax.core import errors

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
        ('[1].jsonl', '[1].jsonl'),
        ('(a)/b', '(a)/b'),
        ('{a}', '{a}'),
        ('[x', '[x'),
        ('@home: x', '@home: x'),
        ('%HOME%/x', '%HOME%/x'),
    ],
)
def test_a_flag_is_a_gin_value_or_else_a_string(text, value):
  (flag,) = gin_configuration.as_flags([f'--gin.NAME={text}'])
  gin.parse_config(f'OTHER = 7\n{flag.removeprefix("--gin_bindings=")}')
  macro = 'OTHER' if text == '%OTHER' else 'NAME'
  assert gin.query_parameter(f'{macro}/gin.macro.value') == value


@pytest.mark.parametrize('name', ['[1]', '(1)', '@x', '%OTHER', '@a/x.jsonl'])
def test_a_flag_that_names_a_file_is_text(name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  binding = f'--gin.NAME={name}'
  assert gin_configuration.as_flags([binding])[0].endswith(f' = {name}')
  pathlib.Path(name).parent.mkdir(exist_ok=True)
  pathlib.Path(name).touch()
  assert gin_configuration.as_flags([binding])[0].endswith(f' = {name!r}')


def test_a_bucket_is_no_folder_of_a_run(capsys):
  code, error = run(capsys, '--run=gs://bucket/run')
  assert code == 2
  assert "is 'gs://bucket/run'; it must be in a file system" in error


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
  assert run(capsys, file, '--run=x') == (
      0, 'distillspec: not read by this command: stages.Group.size (a.gin:7)\n',
  )  # fmt: skip
  method = stages.Method('jsd', 0.25)
  assert stages.calls[0][-1] == stages.Group(1, method)


def test_a_misspelt_parameter_names_file_line_and_near_names(capsys):
  code, error = run(capsys, write('a.gin', 'stages.train.num_step = 1\n'))
  assert code == 2
  assert error == (
      "distillspec: configuration: a.gin:3: Configurable 'stages.train' doesn't"
      " have a parameter named 'num_step'. Did you mean"
      ' stages.train.num_steps?\n'
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
        (
            N + 'stages.train.batch_sizes = 3',
            r'is 3; it must be Sequence\[int\]. Write \(3,\) for one value',
        ),
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
        ('x = (1,', 'a.gin: line 4: EOF in multi-line statement'),
        (
            N + 'A = 1\nstages.train.method = 1',
            'must be .*reads A .a.gin:4., w',
        ),
        (
            N + 'stages.other.steps = %A\nA = 1\nstages.train.method = 1',
            'must be Method.*None.$',
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
        'stages.train.method = None',
    ],
)
def test_a_right_configuration_is_not_refused(capsys, binding):
  file = write('a.gin', f'{N}{binding}\n')
  assert run(capsys, file, '--run=x') == (0, '')


USES = """
stages.train.group = @small/stages.Group()
small/stages.Group.size = 1
small/stages.Group.method = @stages.Method()
stages.Method.divergence = 'jsd'
USED = 1
stages.train.anything = %USED
"""


@pytest.mark.parametrize(
    ('flag', 'hint'),
    [
        ('small/stages.Group.size', None),
        ('stages.Method.beta', None),
        ('USED', None),
        ('stages.Group.size', 'small/stages.Group.size'),  # has its own value
        ('smal/stages.Group.size', 'small/stages.Group.size'),
        ('USEDD', 'USED'),
        ('BATCH_SIZES', 'stages.train.batch_sizes'),
        ('TRAIN_STEPS', 'stages.train.num_steps'),
        ('MODEL_DIR', '--run'),
        ('MIXTURE_OR_TASK_NAME', 'TASK or tasks.registered.name'),
        ('ELSE', ''),
    ],
)
def test_each_name_on_the_command_line_is_read(capsys, stages, flag, hint):
  file = write('a.gin', N + USES + 'stages.train.stage = None')
  pathlib.Path('b.gin').write_text(f'{HEADER}other/stages.other.steps = 1')
  code, error = run(capsys, file, '--run=x', f'--gin.{flag}=0')
  if hint is None:
    assert (code, error) == (0, '')
    return
  question = hint and f' Did you mean {hint}?'
  assert code == 2 and stages.calls == []
  assert error == (
      f'distillspec: configuration: nothing here reads {flag}.{question}\n'
  )


@pytest.mark.parametrize('as_flag', [True, False])
@pytest.mark.parametrize('name', ['NUM_STEP', 'TRAIN_STEPS'])
def test_what_was_given_for_a_name_that_must_be_set(capsys, name, as_flag):
  text = 'stages.train.num_steps = %NUM_STEPS\n'
  flags = [f'--gin.{name}=1'] if as_flag else []
  file = write('a.gin', text + ('' if as_flag else f'{name} = 1'))
  code, error = run(capsys, file, '--run=x', *flags)
  assert code == 2 and error.startswith('distillspec: NUM_STEPS must be set')
  place = '' if as_flag else ' (a.gin:4)'
  assert error.endswith(f' Nothing reads {name}{place}, which you gave.\n')


@pytest.mark.parametrize(
    ('binding', 'place'),
    [
        ('UNUSED = %gin.REQUIRED', 3),
        ('unused/stages.Group.size = 1', 3),
        ('stages.other.steps = 5', 3),
        ('BATCH_SIZE = 4', 3),
        ("include 'b.gin'", 3),
    ],
)
def test_a_name_in_a_file_that_no_command_reads_is_refused(
    capsys, stages, binding, place
):
  write('b.gin', 'UNUSED = 1\n')
  code, error = run(capsys, write('a.gin', binding + '\n' + N), '--run=x')
  assert code == 2 and stages.calls == []
  file = 'b.gin' if 'include' in binding else 'a.gin'
  assert f'nothing here reads {binding.split(" =")[0]} ({file}:{place}).' in (
      error.replace('UNUSED', "include 'b.gin'") if 'incl' in binding else error
  )


def test_names_in_a_file_that_other_commands_read_are_listed(capsys, stages):
  file = write(
      'a.gin',
      N + """
NUM_STEPS = 5
METHOD = %MINE
MINE = 1
""",
  )
  code, error = run(capsys, file, '--run=x')
  assert (code, len(stages.calls)) == (0, 1)
  assert error == (
      'distillspec: not read by this command: NUM_STEPS (a.gin:5), METHOD'
      ' (a.gin:6), MINE (a.gin:7)\n'
  )


def test_names_in_files_of_the_package_are_not_judged(configure, capsys):
  configure(
      'evaluate', '--run=x', '--gin_file=tasks/python.gin',
      '--gin_file=methods/seqkd.gin', '--gin_file=runs/evaluate.gin',
      '--gin.TARGET=x', '--gin.DRAFT=x',
  )  # fmt: skip
  assert capsys.readouterr().err == ''


def test_what_an_experiment_passes_is_not_read_from_gin(configure):
  with pytest.raises(errors.UserError, match='reads acceptance.evaluate.task'):
    configure('quickstart', '--run=x', '--gin.acceptance.evaluate.task=%TASK')


def test_home_folders_are_found(capsys, stages, tmp_path, monkeypatch):
  home = tmp_path / 'home'
  home.mkdir()
  monkeypatch.setenv('HOME', str(home))
  write('home/a.gin', "stages.train.num_steps = 1\ninclude 'b.gin'\n")
  write('home/b.gin', 'stages.train.batch_sizes = (3,)\n')
  flags = ('--gin_file=~/a.gin', '--gin_search_paths=~', '--run=~/x')
  assert run(capsys, *flags) == (0, '')
  assert stages.calls[0][:3] == ('~/x', 1, (3,))  # `train` expands it


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('micro.gin', 'models/micro.gin'),
        ('models/mirco.gin', 'models/micro.gin'),
        ('mine/a.gni', 'mine/a.gin'),
        ('mine', 'mine/config.gin'),
    ],
)
@pytest.mark.usefixtures('stages')
def test_a_file_that_is_not_there_and_files_like_it(capsys, name, near):
  pathlib.Path('mine').mkdir()
  for file in ('a.gin', 'config.gin'):
    write(f'mine/{file}', N)
  code, error = run(capsys, f'--gin_file={name}')
  assert code == 2
  assert re.search(rf'file: {name}\. .*Did you mean {near}\b', error), error


def test_files_and_names_are_listed(capsys):
  assert main.main(['train', '--list']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert any(line.startswith('methods/seqkd.gin  SeqKD (Kim') for line in lines)
  assert main.main(['train', '--list', write('a.gin', USES)]) == 0
  out = capsys.readouterr().out
  assert "stages.Method.beta = 0.5\nstages.Method.divergence = 'jsd'\n" in out
  assert 'stages.train.num_steps = (must be set)\n' in out


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
        (['--gin.trian.run=1'], "'trian'.*Did you mean .*stages.train.run"),
        (
            ['--gin.stages.train.num_step=1'],
            'Did you mean stages.train.num_steps',
        ),
        (
            ['--gin.train.method.size=1'],
            "No configurable matching 'train.method'",
        ),
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


def test_a_file_that_includes_itself(capsys):
  file = write('again.gin', "include 'again.gin'\n")
  code, text = run(capsys, file, '--run=x')
  assert code == 2
  assert 'configuration: again.gin includes itself.' in text
