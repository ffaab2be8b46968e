"""Who may import what, beyond the order of the stages.

import-linter keeps the order; it sees only the first name of a package from
outside, so the rules on parts of one (flax.linen, but not flax.struct) are
here, read from the source.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / 'distillspec_jax'
FILES = sorted(PACKAGE.rglob('*.py'))

# What may be imported -> where, as a folder or file of the package.
ONLY_IN = {
    'flax.linen': ('models',),
    'gin': ('commands/gin_configuration.py',),
    'jinja2': ('reporting',),
    'matplotlib': ('reporting',),
    'optax': ('training',),
    'orbax': ('checkpoints',),
    'qwix': ('models',),
    'rich': ('core/progress.py', 'commands'),
    'tensorstore': ('checkpoints',),
    'tokenizers': ('data',),
    'sentencepiece': ('data',),
    'seqio': ('data',),
    'tensorboardX': ('training',),
    'tensorflow': ('data',),
    'tensorflow_datasets': ('data',),
}


def _imports(source: str, top_level: bool = False) -> list[str]:
  """Full names of what a file imports; `top_level`: when it is imported."""
  names = []
  nodes = [ast.parse(source)]
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [f'{node.module}.{alias.name}' for alias in node.names]
    is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    if not (top_level and is_function):
      nodes += ast.iter_child_nodes(node)
  return names


def _is_in(name: str, package: str) -> bool:
  return name == package or name.startswith(f'{package}.')


def test_the_rules_see_every_form_of_import():
  source = 'import a.b\nfrom a import c\ndef f():\n  from d import e\n'
  assert sorted(_imports(source)) == ['a.b', 'a.c', 'd.e']
  assert sorted(_imports(source, top_level=True)) == ['a.b', 'a.c']


@pytest.mark.parametrize('name', ONLY_IN)
def test_is_imported_only_where_it_belongs(name):
  wrong = [
      str(file.relative_to(PACKAGE))
      for file in FILES
      if not any(file.is_relative_to(PACKAGE / x) for x in ONLY_IN[name])
      and any(_is_in(found, name) for found in _imports(file.read_text()))
  ]
  assert not wrong, f'{name} is for {ONLY_IN[name]} alone'


def test_reporting_never_imports_jax():
  for file in (PACKAGE / 'reporting').rglob('*.py'):
    for name in _imports(file.read_text()):
      assert name.split('.')[0] not in ('jax', 'flax', 'optax'), file


def test_slow_packages_are_imported_when_first_used():
  slow = (
      'gin', 'qwix', 'seqio', 'sentencepiece', 'tensorflow',
      'tensorflow_datasets',
  )  # fmt: skip
  for file in FILES:
    for name in _imports(file.read_text(), top_level=True):
      assert name.split('.')[0] not in slow, file


def test_the_command_line_loads_none_of_the_slow_ones():
  slow = [
      'gin', 'jinja2', 'matplotlib', 'optax', 'scipy.special', 'seqio',
      'tensorboardX', 'tensorflow', 'tensorflow_datasets',
  ]  # fmt: skip
  done = subprocess.run(
      [
          sys.executable,
          '-c',
          'import sys, distillspec_jax, distillspec_jax.commands.main;'
          f'print(sorted(set({slow}) & set(sys.modules)))',
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
  )
  assert done.stdout.strip() == '[]'
