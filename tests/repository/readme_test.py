"""README and documentation are true: commands, code, links, folders."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# Its blocks have tests of their own, which write files around them.
ELSEWHERE = ('extending.md',)


def _blocks():
  """Language, text and a name of each block of code."""
  for page in PAGES:
    if page.name not in ELSEWHERE:
      found = BLOCK.findall(page.read_text())
      for number, (language, text) in enumerate(found):
        yield language, text, f'{page.stem}-{number}'


PYTHON = [
    pytest.param(text, id=name)
    for language, text, name in _blocks()
    if language == 'python'
]
COMMANDS = [
    pytest.param(shlex.join(shlex.split(command, comments=True)), id=name)
    for language, text, name in _blocks()
    if language != 'python'
    for command in re.findall(
        r'^(?:.*-- +)?((?:make|distillspec) [^&|;$\n]*)$',
        text.replace('\\\n', ' '),
        re.MULTILINE,
    )
]

# The quickstart's stages on models and data that take seconds.
SMALL = """
quickstart --run=runs/quickstart --gin.TARGET=test --gin.DRAFT=test
--gin.target/settings.Steps.num_steps=2 --gin.draft/settings.Steps.num_steps=2
--gin.distil/settings.Steps.num_steps=2
--gin.optimizers.Optimizer.warmup_steps=1
--gin.acceptance.evaluate.examples=4
--gin.evaluate/decoding.grid.block_lengths=(2,)
--gin.latency.benchmark.batch_sizes=(1,) --gin.latency.benchmark.repeats=2
--gin.benchmark/decoding.grid.block_lengths=(2,)
""".split()


def environment() -> dict[str, str]:
  """One in which this checkout's package is found from any folder."""
  return {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory) -> pathlib.Path:
  """A folder in which the quickstart has run."""
  folder = tmp_path_factory.mktemp('readme')
  done = subprocess.run(
      [sys.executable, '-m', 'distillspec_jax', *SMALL],
      cwd=folder,
      env=environment(),
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  return folder


def test_there_are_commands_and_code():
  commands = [command.values[0] for command in COMMANDS]
  assert 'make quickstart' in commands and len(commands) > 25
  assert len(PYTHON) > 5


def test_the_quickstart_leaves_what_the_readme_shows(folder):
  run = folder / 'runs' / 'quickstart'
  assert (run / 'report.html').read_text().startswith('<!DOCTYPE html>')
  assert (run / 'config.gin').is_file()
  assert list((run / 'figures').glob('*.png'))


def test_the_configuration_of_a_run_can_be_run_again(folder, configure):
  file = folder / 'runs' / 'quickstart' / 'config.gin'
  configure('experiment', f'--gin_file={file}', '--run=x')


@pytest.mark.parametrize('code', PYTHON)
def test_code_runs(folder, code):
  done = subprocess.run(
      [sys.executable, '-W', 'error::DeprecationWarning:__main__', '-c', code],
      cwd=folder,
      env=environment(),
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr


# Gin files of the reader's own, which a page shows.
GIN_FILES = {
    name: text
    for page in PAGES
    for name, text in re.findall(
        r'`(\w+\.gin)`,\n\n```\n(.*?)^```',
        page.read_text(),
        re.MULTILINE | re.DOTALL,
    )
}


@pytest.mark.parametrize('command', COMMANDS)
def test_command_is_complete(command, configure, tmp_path, monkeypatch):
  """All that is done before work starts; what it starts is not run."""
  monkeypatch.chdir(tmp_path)
  for name, text in GIN_FILES.items():
    pathlib.Path(name).write_text(text)
  program, *arguments = shlex.split(command)
  if program == 'make':
    done = subprocess.run(
        ['make', '--dry-run', *arguments], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
  elif '...' not in arguments:  # an abridged one is a form, not a command
    configure(*(x.replace('=DATA', '=folder') for x in arguments))


def test_pages_link_to_what_exists():
  for page in [ROOT / 'CONTRIBUTING.md', *PAGES]:
    for link in re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', page.read_text()):
      if '://' not in link:
        assert (page.parent / link).exists(), f'{page.name}: {link}'


def _tree() -> list[str]:
  """The paths of the code block under the heading 'Folders'."""
  section = README.partition('\n## Folders\n')[2].partition('\n## ')[0]
  block = re.search(r'^```\w*\n(.*?)^```$', section, re.MULTILINE | re.DOTALL)
  assert block, "the README has a code block under the heading '## Folders'"
  return [line.split()[0] for line in block.group(1).splitlines() if line]


def test_the_tree_of_folders_is_true():
  listed = _tree()
  for path in listed:
    assert (ROOT / path).exists(), path
    assert path.endswith('/') == (ROOT / path).is_dir(), path


def test_the_tree_of_folders_is_complete():
  stages = {
      f'distillspec_jax/{path.parent.name}/'
      for path in (ROOT / 'distillspec_jax').glob('*/__init__.py')
  }
  assert stages <= set(_tree())
