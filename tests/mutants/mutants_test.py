"""The mutants fit the package as it is; `make mutants` runs them."""

import pathlib
import shlex

import pytest

from tests.mutants import mutants
from tests.mutants import run

ROOT = pathlib.Path(__file__).parents[2]
LISTED = [*mutants.SAMPLING, *mutants.LOSSES, *mutants.TRAINING]


def test_there_are_enough_and_each_has_a_name():
  assert len(mutants.ALL) == len(LISTED) >= 24


@pytest.mark.parametrize('mutant', LISTED, ids=lambda mutant: mutant.name)
def test_a_mutant_fits(mutant):
  text = (ROOT / 'distillspec_jax' / mutant.file).read_text()
  assert text.count(mutant.old) == 1, 'the text to replace is not there once'
  compile(text.replace(mutant.old, mutant.new), mutant.file, 'exec')
  file, *_ = shlex.split(mutant.tests)
  assert (ROOT / file).is_file()


def test_a_mutant_is_made_in_a_copy(tmp_path):
  run.copy(tmp_path)
  mutant = LISTED[0]
  run.patch(tmp_path, mutant)
  copied = (tmp_path / 'distillspec_jax' / mutant.file).read_text()
  here = (ROOT / 'distillspec_jax' / mutant.file).read_text()
  assert mutant.new in copied and mutant.new not in here
