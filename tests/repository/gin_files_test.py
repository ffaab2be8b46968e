"""Every gin file parses, and says nothing that the code does not know."""

import re
import shlex
import subprocess

import gin
import pytest

from distillspec_jax.commands import gin_files
from distillspec_jax.commands import main
from distillspec_jax.core import errors

FOLDER = gin_files.folder()
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob('*.gin'))
EXPERIMENTS = [name for name in FILES if name.startswith('experiments/')]
# Files that bind a macro for the file of a run.
PARTS = [name for name in FILES if name.startswith(('methods/', 'models/'))]


def test_there_are_files_of_each_kind():
  kinds = {name.split('/')[0] for name in FILES}
  assert kinds == {'experiments', 'methods', 'models', 'runs', 'tasks'}


def test_none_is_ignored_by_git():
  folder = FOLDER.parent
  if not (folder / '.git').exists():  # an unpacked archive has no such rules
    return
  done = subprocess.run(
      ['git', 'check-ignore', *[f'gin_configs/{name}' for name in FILES]],
      cwd=folder,
      capture_output=True,
      text=True,
  )
  assert done.stdout == ''


@pytest.mark.parametrize('name', FILES)
@pytest.mark.usefixtures('fresh_configuration')
def test_parses(name, monkeypatch):
  # As the command line does: a folder `runs` here is no package of that name.
  monkeypatch.setattr(gin.config, '_FILE_READERS', gin.config._FILE_READERS[:1])
  gin.add_config_file_search_path(str(FOLDER))
  gin.parse_config_file(name)


@pytest.mark.parametrize('name', PARTS)
@pytest.mark.usefixtures('fresh_configuration')
def test_a_part_binds_its_macro_to_a_value_that_can_be_made(name):
  gin.parse_config_file(str(FOLDER / name))
  macro = 'METHOD' if name.startswith('methods/') else 'MODEL'
  with gin.config_scope(macro):
    assert gin.get_bindings('gin.macro')['value'] is not None


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_binds_all_but_the_data(name, configure):
  # The first command of the header.
  text = (FOLDER / name).read_text().partition('\nfrom ')[0]
  command = re.search(
      r'^# +distillspec (\w+ --gin_file.*(?:\n# +--.*)*)', text, re.MULTILINE
  )
  command, *arguments = shlex.split(command.group(1).replace('\n#', ' '))
  assert command in ('experiment', 'study', 'evaluate')
  assert f'--gin_file={name}' in arguments
  configure(command, *arguments)


def test_a_file_that_reads_a_name_is_named(configure):
  with pytest.raises(
      errors.UserError, match='reads TARGET. It is read by runs/distil.gin.'
  ):
    configure(
        'train', '--run=x', '--gin_file=models/nano.gin',
        '--gin_file=tasks/python.gin', '--gin_file=methods/seqkd.gin',
        '--gin_file=runs/train.gin', '--gin.NUM_STEPS=1', '--gin.TARGET=x',
    )  # fmt: skip


def test_what_is_missing_is_in_a_file_of_the_package(configure):
  with pytest.raises(
      errors.UserError, match='--gin_file=runs/distil.gin or runs/train.gin'
  ):
    configure('train', '--run=x', '--gin_file=models/nano.gin')


@pytest.mark.parametrize('name', FILES)
def test_the_header_says_what_it_is(name):
  text = (FOLDER / name).read_text()
  assert text.startswith('# ')
  header = text.partition('\nfrom ')[0]
  if name in EXPERIMENTS:
    assert re.search(
        r'(make|distillspec) \w+', header
    ), 'which command runs it?'


@pytest.mark.parametrize('command', list(main.COMMANDS))
def test_the_example_of_each_command_is_complete(command, configure):
  program, *arguments = shlex.split(main.COMMANDS[command].EXAMPLE)
  assert program == 'distillspec' and arguments[0] == command
  if '--gin_file=experiments/gsm8k.gin' in arguments:
    arguments.append('--gin.DATA=folder')
  configure(*arguments)


def test_counterparts_of_the_names_of_t5x(configure):
  page = (FOLDER.parent / 'docs' / 'configuration.md').read_text()
  names = dict(re.findall(r'^\| `([A-Z_]+)` \| (.*) \|$', page, re.MULTILINE))
  assert 'BATCH_SIZE' in names and len(names) > 8
  with pytest.raises(errors.UserError) as raised:
    configure(
        'train', '--run=x', '--gin_file=models/nano.gin',
        '--gin_file=tasks/json_lines.gin', '--gin_file=methods/fine_tune.gin',
        '--gin_file=runs/train.gin', '--gin.NUM_STEPS=1', '--gin.TRAIN=x',
        '--gin.VALIDATION=x', *[f'--gin.{name}=1' for name in names],
    )  # fmt: skip
  said = dict(
      re.findall(r'reads (\w+)\. Did you mean (.*?)\?', str(raised.value))
  )
  assert said.keys() == names.keys()
  for name, text in names.items():
    for counterpart in re.findall('`([^` ]+)`', text):
      assert counterpart in said[name], name


@pytest.mark.parametrize(
    'binding',
    [
        'distil/settings.Start.shared_encoder=True',
        'draft/settings.Start.shared_encoder=True',
    ],
)
def test_the_encoder_may_be_shared_in_an_experiment(binding, configure):
  configure('quickstart', '--run=x', f'--gin.{binding}')


def test_a_parallel_draft_may_be_added_to_an_experiment(configure):
  function = configure(
      'quickstart', '--run=x', '--gin_file=runs/experiment_parallel.gin',
      '--gin.parallel/settings.Steps.num_steps=5',
      '--gin.evaluate/decoding.grid.block_lengths=(4,)',
      '--gin.parallel.Parallel.block_length=4',
  )  # fmt: skip
  print(function)


def test_models_of_an_experiment_may_be_given(configure):
  given = ('--gin.TARGET=target', '--gin.DRAFT=draft', '--gin.DATA=folder')
  configure(
      'experiment', '--run=x', '--gin_file=experiments/gsm8k.gin',
      '--gin_file=runs/experiment_pretrained.gin', *given,
  )  # fmt: skip
  tuned = (
      'experiment.run_experiment.fine_tune_draft=@draft/settings.Training()',
      'draft/settings.Start.model=None',
      'draft/settings.Start.checkpoint=%DRAFT',
  )
  text = (FOLDER / 'runs' / 'experiment_pretrained.gin').read_text()
  for binding in tuned:
    assert binding.replace('=', ' = ', 1) in text
  gin.clear_config()
  configure(
      'experiment', '--run=x', '--gin_file=experiments/gsm8k.gin',
      '--gin_file=runs/experiment_pretrained.gin', *given,
      *[f'--gin.{binding}' for binding in tuned],
  )  # fmt: skip


def test_a_task_and_a_metric_may_be_of_another_module(
    configure, tmp_path, monkeypatch
):
  (tmp_path / 'my_module.py').write_text(
      'def my_task(words):\n  return words\n\n'
      'def rouge(answers, labels):\n  return [0.0] * len(answers)\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  imports = 'from __gin__ import dynamic_registration\nimport my_module\n'
  metrics = tmp_path / 'metrics.gin'
  metrics.write_text(
      f'{imports}from distillspec_jax.data import tasks\n'
      "tasks.json_lines.metrics = ('exact_match', @my_module.rouge)\n"
      "include 'tasks/json_lines.gin'\n"
  )
  task = tmp_path / 'task.gin'
  task.write_text(f'{imports}TASK = @my_module.my_task()\n')
  pair = ('--gin_file=runs/evaluate.gin', '--run=x', '--gin.TARGET=t')
  data = ('--gin.DRAFT=d', '--gin.TRAIN=a', '--gin.VALIDATION=b')
  configure('evaluate', f'--gin_file={metrics}', *pair, *data)
  gin.clear_config()
  words = "--gin.my_module.my_task.words='a'"
  configure('evaluate', f'--gin_file={task}', *pair, *data[:1], words)
  with pytest.raises(errors.UserError, match='words of .*my_task is missing'):
    gin.clear_config()
    configure('evaluate', f'--gin_file={task}', *pair, *data[:1])


def test_a_module_that_is_not_imported_is_named(configure, tmp_path):
  path = tmp_path / 'x.gin'
  path.write_text(
      'from __gin__ import dynamic_registration\ntasks.json_lines.test = "a"\n'
  )
  with pytest.raises(
      errors.UserError, match="x.gin:2: 'tasks' was not provided by an import"
  ):
    configure('evaluate', f'--gin_file={path}', '--run=x')


def test_the_command_of_several_hosts_is_complete(configure):
  page = (FOLDER.parent / 'docs' / 'scaling.md').read_text()
  (loop,) = re.findall(r'^```\n(for .*?)^```$', page, re.MULTILINE | re.DOTALL)
  (command,) = re.findall(r'distillspec (.*?) &', loop, re.DOTALL)
  configure(*shlex.split(command.replace('\\\n', ' ').replace('$index', '1')))
  assert gin.query_parameter('loop.train.run') == 'runs/two_hosts'


def test_the_command_of_a_shared_encoder_is_complete(configure):
  page = (FOLDER.parent / 'docs' / 'shared_encoder.md').read_text()
  (command,) = re.findall(r'^```\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
  program, *arguments = shlex.split(command.replace('\\\n', ' '))
  assert program == 'distillspec'
  configure(*arguments)
  assert gin.query_parameter('settings.Start.shared_encoder') is True
