"""Tests are where a reader of their module looks for them.

The tests of distillspec_jax/X/Y.py are tests/X/Y_test.py; a longer subject has
a file of its own beside it, tests/X/Y_SUBJECT_test.py.
"""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ROOT / 'tests'
PACKAGE = ROOT / 'distillspec_jax'
MIRRORS = [
    file.relative_to(TESTS)
    for file in sorted(TESTS.rglob('*_test.py'))
    if (PACKAGE / file.relative_to(TESTS).parts[0]).is_dir()
]
DOCS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def modules_of(test: pathlib.Path) -> list[str]:
  """Modules that a test file can be named after."""
  words = test.name.removesuffix('_test.py').split('_')
  names = ['_'.join(words[:size]) for size in range(len(words), 0, -1)]
  folder = PACKAGE / test.parent
  return [name for name in names if (folder / f'{name}.py').is_file()]


@pytest.mark.parametrize('test', MIRRORS, ids=str)
def test_is_named_after_a_module(test):
  assert modules_of(test), f'distillspec_jax/{test.parent} has no such module'


def test_other_names_are_seen():
  folder = pathlib.Path('sampling')
  assert modules_of(folder / 'drafting_test.py') == ['drafting']
  assert modules_of(folder / 'drafting_subject_test.py') == ['drafting']
  assert not modules_of(folder / 'subject_test.py')
  assert not modules_of(folder / 'draftings_test.py')


@pytest.mark.parametrize('file', DOCS, ids=lambda file: file.name)
def test_tests_that_docs_name_exist(file):
  for path in re.findall(r'\btests/[\w/.]+', file.read_text()):
    assert (ROOT / path.rstrip('.')).exists(), path
