"""The notebooks: committed without outputs, true to the code, and executed.

Each is run whole, in a kernel of its own, with models and numbers of steps that
take seconds; its parameters come from environment variables.
"""

import glob
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import gin
import nbclient
import nbformat
import pytest

from tests.commands import main_hugging_face_test
from tests.repository import readme_test

# The README's, with fewer programs to compile.
SMALL = [
    *[flag for flag in readme_test.SMALL[2:] if 'benchmark' not in flag],
    '--gin.experiment.run_experiment.control=None',
    '--gin.experiment.run_experiment.benchmark=None',
    '--gin.evaluate/decoding.grid.temperatures=(0.0,)',
    '--gin.settings.Steps.batch_size=8',
]

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'notebooks'
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def commands(notebook) -> list[list[str]]:
  """Arguments of `distillspec` in it, with values in place of variables."""
  found = []
  for cell in notebook.cells:
    if cell.cell_type == 'code' and cell.source.startswith('%%bash\n'):
      text = cell.source.partition('\n')[2].replace('\\\n', ' ')
      for line in map(str.strip, text.splitlines()):
        if line.startswith('distillspec '):
          line = line.replace('$FLAGS', '')
          line = re.sub(r'\$(TARGET|DRAFT)\b', 'folder', line)
          found.append(shlex.split(re.sub(r'\$[A-Z_]+', '8', line))[1:])
  return found


@pytest.fixture(name='execute')
def _execute(tmp_path, monkeypatch):
  """A function: runs a notebook in tmp_path; returns it with its outputs."""
  programs = tmp_path / 'bin'
  programs.mkdir()
  for name, words in (
      ('python', sys.executable),
      ('distillspec', f'{sys.executable} -m distillspec_jax'),
  ):
    (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (programs / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{programs}:{os.environ["PATH"]}')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # compiles faster
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  monkeypatch.setenv('JUPYTER_PREFER_ENV_PATH', '1')

  def run(name, **parameters):
    for key, value in parameters.items():
      monkeypatch.setenv(key, value)
    notebook = read(name)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={'metadata': {'path': tmp_path}}
    ).execute()
    return notebook

  return run


def printed(notebook):
  return ''.join(
      output.text
      for cell in notebook.cells
      for output in cell.get('outputs', ())
      if output.output_type == 'stream' and output.name == 'stdout'
  )


def images(notebook):
  return [
      output
      for cell in notebook.cells
      for output in cell.get('outputs', ())
      if 'image/png' in output.get('data', ())
  ]


def test_there_are_two():
  assert NAMES == ['distil_flan_t5', 'quickstart']


@pytest.mark.parametrize('name', NAMES)
def test_is_valid_and_has_no_outputs(name):
  notebook = read(name)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize('name', NAMES)
def test_its_commands_are_complete(name, configure):
  assert commands(read(name))
  for arguments in commands(read(name)):
    gin.clear_config()
    configure(*arguments)


# Runtime -> what it has, and the extra that it needs.
RUNTIMES = {'cpu': [], 'cuda': ['nvidia-smi'], 'tpu': ['/dev/accel0']}


@pytest.fixture(name='install')
def _install(monkeypatch):
  """A function: runs a notebook's first cell as in a runtime without it."""

  def run(name, source, runtime):
    has, commands = RUNTIMES[runtime], []
    monkeypatch.setenv('SOURCE', str(source))
    monkeypatch.setattr(shutil, 'which', lambda name: name in has or None)
    monkeypatch.setattr(
        glob, 'glob', lambda pattern: [x for x in has if pattern[:10] in x]
    )
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(
        subprocess, 'run', lambda words, check: commands.append(words)
    )
    cells = (c for c in read(name).cells if c.cell_type == 'code')
    exec(next(cells).source, {})
    monkeypatch.undo()
    (command,) = commands
    return command

  return run


@pytest.mark.parametrize('runtime', RUNTIMES)
@pytest.mark.parametrize('name', NAMES)
def test_its_first_cell_installs_the_package(name, runtime, install, tmp_path):
  extras = {runtime} - {'cpu'}
  if name == 'distil_flan_t5':
    extras.add('hub')
  # Extras that the package has, without what they would install.
  setup = (ROOT / 'setup.py').read_text()
  assert all(f"        '{extra}': [" in setup for extra in extras)
  (tmp_path / 'setup.py').write_text(
      "import setuptools\nsetuptools.setup(name='x', packages=[],"
      f' extras_require={dict.fromkeys(extras, [])})'
  )
  command = install(name, tmp_path, runtime)
  *_, requirement = command
  found = re.fullmatch(r'(.*?)(?:\[(.*)\])?', requirement)
  assert found.group(1) == str(tmp_path)
  assert set((found.group(2) or '').split(',')) - {''} == extras
  flags = ['--dry-run', '--no-deps', '--no-build-isolation', '--no-index']
  done = subprocess.run([*command, *flags], capture_output=True, text=True)
  assert done.returncode == 0 and 'WARNING' not in done.stderr, done.stderr


@pytest.mark.parametrize('name', NAMES)
def test_where_there_is_nothing_to_install_is_said(name, install, tmp_path):
  with pytest.raises(FileNotFoundError, match='neither a checkout nor a whee'):
    install(name, tmp_path, 'cpu')


def test_the_quickstart(execute):
  notebook = execute('quickstart', FLAGS=' '.join(SMALL))
  assert 'distilled: ' in printed(notebook)
  assert images(notebook)


def test_a_users_own_pair(execute, tmp_path):
  main_hugging_face_test.save(tmp_path / 'large', 0)
  main_hugging_face_test.save(tmp_path / 'small', 1, num_decoder_layers=1)
  notebook = execute(
      'distil_flan_t5',
      TARGET='large',
      DRAFT='small',
      NUM_STEPS='2',
      BATCH_SIZE='8',
      LABEL_LENGTH='8',
      EXAMPLES='8',
      CERTIFY='no',  # it takes more than a minute, and has tests of its own
  )
  assert 'tokens per target call' in printed(notebook)
  assert 'What is the capital of France? -> ' in printed(notebook)
  config = json.loads(
      (tmp_path / 'flan-t5-distilled' / 'config.json').read_text()
  )
  assert config['num_decoder_layers'] == 1
