"""Flags follow from a function's signature and docstring."""

import argparse
import dataclasses

import pytest

from distillspec_jax.commands import flags
from distillspec_jax.core import errors
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import verification


def work(
    source: str,
    *rest: str,
    to: str,
    step: int | None = None,
    rate: float = 0.5,
    force: bool = False,
) -> tuple:
  """Works.

  Args:
    source: where from; 100 % of it,
      all lines.
    *rest: more.
    to: where to.
    step: which.
    rate: how much.
    force: in any case.

  Returns:
    All of it.
  """
  return source, rest, to, step, rate, force


def parsed(*arguments):
  parser = argparse.ArgumentParser(prog='work')
  flags.add(parser, work)
  return flags.call(work, parser.parse_args(arguments))


def test_defaults_and_types():
  assert parsed('a', '--to=b') == ('a', (), 'b', None, 0.5, False)
  assert parsed(
      'a', 'x', 'y', '--to', 'b', '--step=3', '--rate=1', '--force'
  ) == ('a', ('x', 'y'), 'b', 3, 1.0, True)


def test_help_is_the_docstrings(capsys):
  with pytest.raises(SystemExit):
    parsed('--help')
  text = ' '.join(capsys.readouterr().out.split())
  assert 'where from; 100 % of it, all lines' in text
  assert '--step INT which --rate FLOAT how much (default: 0.5)' in text
  assert 'All of it' not in text


def several(*, stop: tuple[str, ...] = (), size: int = 1) -> tuple:
  """Works.

  Args:
    stop: any of them.
    size: how many.
  """
  return tuple(stop), size


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([], ((), 1)),
        (['--stop=a', '--size=2', '--stop', 'b,c'], (('a', 'b,c'), 2)),
        (['--stop= \n', '--stop='], ((' \n', ''), 1)),
        (['--stop=-->'], (('-->',), 1)),
    ],
)
def test_flags_that_are_repeated(arguments, expected):
  parser = argparse.ArgumentParser(prog='several')
  flags.add(parser, several)
  for _ in range(2):  # nothing is kept from one call to the next
    assert flags.call(several, parser.parse_args(arguments)) == expected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heat:
  """Attributes of it.

  Attributes:
    degrees: how hot it is;
      0 is freezing.
    scale: of the degrees.
  """

  degrees: float = 0.0
  scale: str = 'celsius'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
  """A group with a group inside it.

  Attributes:
    heat: inside.
    adaptive: when to stop.
    verifier: what is accepted.
    length: of the oven.
    secret: nothing for flags.
  """

  heat: Heat = Heat()
  adaptive: adaptive_length.AdaptiveLength | None = None
  verifier: verification.Verifier = verification.Token()
  length: int | None = None
  secret: tuple[int, ...] = (1,)


NAMES = {'length': 'oven_length', 'secret': None}


def bake(
    *, oven: Oven = Oven(heat=Heat(degrees=180.0), secret=(7,)), size: int = 1
) -> tuple:
  """Bakes.

  Args:
    oven: where.
    size: of the bread.
  """
  return oven, size


def baked(*arguments):
  parser = argparse.ArgumentParser(prog='bake')
  flags.add(parser, bake, NAMES)
  return flags.call(bake, parser.parse_args(arguments), NAMES)


def test_fields_of_groups_are_flags_with_the_defaults_of_the_function():
  assert baked() == (Oven(heat=Heat(degrees=180.0), secret=(7,)), 1)
  assert baked(
      '--degrees=90', '--scale=kelvin', '--oven_length=3', '--size=2',
      '--verifier=lenient(linear, 0.5)', '--adaptive=confidence(0.4)',
  ) == (
      Oven(
          heat=Heat(degrees=90.0, scale='kelvin'),
          adaptive=adaptive_length.Confidence(0.4),
          verifier=verification.Lenient('linear', 0.5),
          length=3,
          secret=(7,),
      ),
      2,
  )  # fmt: skip


@pytest.mark.parametrize(
    'argument, message',
    [
        ('--verifier=nothing', "There is no verifier called 'nothing'"),
        ('--verifier=lenient(cubic, 0.5)', "Lenient.function is 'cubic'"),
        ('--adaptive=confidence(2)', 'Confidence.threshold is 2'),
    ],
)
def test_objects_check_themselves(argument, message):
  with pytest.raises(errors.UserError, match=message):
    baked(argument)


def test_help_of_groups_is_that_of_their_fields(capsys):
  with pytest.raises(SystemExit):
    baked('--help')
  text = ' '.join(capsys.readouterr().out.split())
  assert '--degrees FLOAT how hot it is; 0 is freezing (default: 180)' in text
  assert '--verifier TEXT what is accepted (default: token)' in text
  assert '--oven_length INT of the oven --size' in text
  assert 'secret' not in text


def test_a_type_that_is_no_flag_is_refused():
  def several(*, sizes: tuple[int, ...] = ()):
    """Works.

    Args:
      sizes: all.
    """

  with pytest.raises(TypeError, match='No flag can be made of a parameter'):
    flags.add(argparse.ArgumentParser(), several)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['a'], 'required: --to'),
        (['--to=b'], 'required: SOURCE'),
        (['a', '--to=b', '--step=x'], "--step: invalid int value: 'x'"),
        (['a', '--to=b', '--nothing=1'], 'unrecognized arguments: --nothing=1'),
    ],
)
def test_what_does_not_fit_is_named(capsys, arguments, message):
  with pytest.raises(SystemExit) as stop:
    parsed(*arguments)
  assert stop.value.code == 2
  assert message in capsys.readouterr().err
