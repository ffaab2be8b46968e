"""docs/extending.md runs: its files, commands and Python."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from distillspec_jax.core import results
from tests import tiny
from tests.repository import readme_test

PAGE = (readme_test.ROOT / 'docs' / 'extending.md').read_text()
INTRODUCTION, *SECTIONS = re.split(r'^## ', PAGE, flags=re.MULTILINE)
# What makes training and measuring take seconds.
SMALL = {
    'decode': ['--max_new_tokens=8'],
    'evaluate': [
        '--gin.acceptance.evaluate.batch_size=6',
        '--gin.decoding.grid.temperatures=(1.0,)',
        '--gin.decoding.grid.block_lengths=(2,)',
        '--gin.tasks.json_lines.label_length=8',
    ],
    'train': [
        '--gin.NUM_STEPS=1',
        '--gin.settings.Steps.batch_size=8',
        '--gin.settings.Validation.examples=8',
        '--gin.tasks.json_lines.label_length=8',
    ],
}
# The run of a section's command -> what is in its results.
RESULTS = {
    'likely': 'my_rules:Likely(0.2)',
    'likely_too': 'my_rules:Likely(0.2)',
    'alpha': '"expected_acceptance"',
    'overlap': '"word_overlap"',
    'backwards': '"task": "backwards"',
    'lion': '"learning_rate"',
}


def blocks(text: str) -> list[tuple[str, str]]:
  return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def name_of(code: str) -> str:
  """The file that a block is, as its first line says; '' if it is none."""
  match = re.match(r'# (\w+\.(?:py|gin))\n', code)
  return match.group(1) if match else ''


@pytest.fixture(name='folder', scope='module')
def _folder(tmp_path_factory) -> pathlib.Path:
  """A folder with the files of the page, its pair and its data."""
  folder = tmp_path_factory.mktemp('extending')
  for _, code in blocks(PAGE):
    if name_of(code):
      (folder / name_of(code)).write_text(code)
  target = tiny.model(tiny.BYTES, gain=3.0)
  for name, model in (('target', target), ('draft', tiny.noisy(target, 0.3))):
    tiny.save(folder / 'runs' / name, model, 'bytes')
  lines = [{'inputs': word, 'labels': word * 2} for word in tiny.WORDS]
  for split in ('train', 'validation'):
    text = ''.join(json.dumps(line) + '\n' for line in 2 * lines)
    (folder / f'{split}.jsonl').write_text(text)
  return folder


def run(folder: pathlib.Path, *arguments: str) -> None:
  done = subprocess.run(
      [sys.executable, *arguments],
      cwd=folder,
      env=readme_test.environment(),
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr


def commands(section: str) -> list[list[str]]:
  return [
      shlex.split(line)[1:]
      for language, code in blocks(section)
      for line in code.replace('\\\n', ' ').splitlines()
      if not language and line.startswith('distillspec ')
  ]


@pytest.mark.parametrize('section', SECTIONS, ids=lambda x: x.split('\n')[0])
def test_a_section_has_a_module_and_is_used_in_three_ways(section):
  names = [name_of(code) for _, code in blocks(section)]
  modules = [name for name in names if name.endswith('.py')]
  assert len(modules) == 1
  assert any(name.endswith('.gin') for name in names)
  assert commands(section)
  assert any(x == 'python' and not name_of(code) for x, code in blocks(section))


@pytest.mark.parametrize(
    'command',
    [x for section in SECTIONS for x in commands(section)],
    ids=lambda x: ' '.join(x[:2]),
)
def test_a_command_does_what_it_says(folder, command):
  small = SMALL[command[0]]
  if '--gin_file=my_tasks.gin' in command:  # has another task
    small = [flag for flag in small if 'json_lines' not in flag]
  run(folder, '-m', 'distillspec_jax', *command, *small)
  for argument in command:
    if argument.startswith('--run='):
      path = folder / argument.removeprefix('--run=') / results.FILE
      assert RESULTS[path.parent.name] in path.read_text()


@pytest.mark.parametrize(
    'code',
    [
        code
        for section in SECTIONS
        for language, code in blocks(section)
        if language == 'python' and not name_of(code)
    ],
    ids=lambda code: re.search(r'import (my_\w+)', code).group(1),
)
def test_python_runs(folder, code):
  run(folder, '-c', code)
