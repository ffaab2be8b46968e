"""Objects by name: parsing and describing are each other's inverse."""

import dataclasses
import math
import sys

from hypothesis import given
from hypothesis import strategies
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import objects


@dataclasses.dataclass(frozen=True)
class Shape:
  form: str
  size: float = 1.0
  copies: int = 1


@dataclasses.dataclass(frozen=True)
class Nothing:
  pass


for _class in (Shape, Nothing):  # as if the package had them
  _class.__module__ = 'distillspec_jax.figures'

KNOWN = {'shape': Shape, 'nothing': Nothing}


def parse(text):
  return objects.parse(text, KNOWN, 'figure')


@pytest.mark.parametrize(
    'text, expected',
    [
        ('nothing', Nothing()),
        (' nothing ( ) ', Nothing()),
        ('shape(round)', Shape('round')),
        ("shape('round', 0.5)", Shape('round', 0.5)),
        (' shape( round,1e-3 , 2 )', Shape('round', 1e-3, 2)),
        ('shape(round, copies=2)', Shape('round', copies=2)),
        ('shape(form = round, size=None)', Shape('round', None)),
        ('shape(round, -1, True)', Shape('round', -1, True)),
    ],
)
def test_texts_are_calls(text, expected):
  parsed = parse(text)
  assert parsed == expected and type(parsed) is type(expected)


@pytest.mark.parametrize(
    'instance, text',
    [
        (Nothing(), 'nothing'),
        (Shape('round'), 'shape(round)'),
        (Shape('round', 0.5), 'shape(round, 0.5)'),
        (Shape('round', copies=3), 'shape(round, copies=3)'),
        (Shape('round', 2.0, 3), 'shape(round, 2, 3)'),
        (Shape('round', np.float32(0.25), 3), 'shape(round, 0.25, 3)'),
        (Shape('round', 0.123456789), 'shape(round, 0.123456789)'),
        (Shape('round', -math.inf), 'shape(round, -inf)'),
    ],
)
def test_descriptions_are_short(instance, text):
  assert objects.describe(instance) == text
  assert parse(text) == instance


@given(
    form=strategies.from_regex(r'[a-z]{1,8}', fullmatch=True).filter(
        lambda word: word != 'inf'
    ),
    size=strategies.floats(allow_nan=False),
    copies=strategies.integers(),
)
def test_describing_and_parsing_are_inverse(form, size, copies):
  instance = Shape(form, size, copies)
  assert parse(objects.describe(instance)) == instance


@pytest.mark.parametrize(
    'text, message',
    [
        ('', "The figure is ''; write NAME or NAME(VALUE, ...), with one of"),
        ('shape(round', 'with one of shape, nothing, or MODULE:NAME for one'),
        ('shape round', "The figure is 'shape round'; write NAME"),
        ('shap', "no figure called 'shap'; use one of shape, nothing, or"),
        ('shap', 'Did you mean shape?'),
        ('shape', "The figure 'shape' has arguments that do not fit: "),
        ('nothing(1)', "The figure 'nothing(1)' has arguments that do not fit"),
        ('shape(round, colour=red)', "unexpected keyword argument 'colour'"),
        ('shape(round, form=flat)', "multiple values for argument 'form'"),
        ('no_such_module:Shape', 'There is no module no_such_module, which'),
        ('math:Shape', 'Module math has no figure Shape.'),
    ],
)
def test_texts_that_name_nothing_are_refused(text, message):
  with pytest.raises(errors.UserError) as error:
    parse(text)
  assert message in str(error.value)


def test_hints_are_given_for_near_misses_only():
  with pytest.raises(errors.UserError) as error:
    parse('cube')
  assert 'Did you mean' not in str(error.value)


@pytest.fixture(name='folder')
def _folder(tmp_path, monkeypatch):
  """The working folder, whose modules are forgotten after the test."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != ''])
  known = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - known:
    if name.startswith('figures'):
      del sys.modules[name]


def test_a_users_module_lies_in_the_working_folder(folder):
  (folder / 'figures_of_mine.py').write_text(
      'import dataclasses\n'
      '@dataclasses.dataclass(frozen=True)\n'
      'class Cube:\n'
      '  side: float\n'
  )
  cube = parse('figures_of_mine:Cube(2.5)')
  assert type(cube).__name__ == 'Cube' and cube.side == 2.5
  assert objects.describe(cube) == 'figures_of_mine:Cube(2.5)'
  assert parse(objects.describe(cube)) == cube
  with pytest.raises(errors.UserError, match='has no figure Ball'):
    parse('figures_of_mine:Ball')


def test_what_a_users_module_lacks_is_not_taken_for_the_module(folder):
  (folder / 'figures_that_fail.py').write_text('import no_such_package\n')
  with pytest.raises(ModuleNotFoundError, match='no_such_package'):
    parse('figures_that_fail:Cube')
  with pytest.raises(errors.UserError, match='There is no module figures.two'):
    parse('figures.two:Cube')
