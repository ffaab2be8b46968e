"""Flags follow from a function's signature and docstring."""

import argparse

import pytest

from distillspec_jax.commands import flags


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
  assert 'where from; 100 % of it, all lines.' in text
  assert '--step INT which.' in text
  assert 'All of it' not in text


def several(
    *, rule: tuple | None = None, stop: tuple[str, ...] = (), size: int = 1
) -> tuple:
  """Works.

  Args:
    rule: a name and numbers.
    stop: any of them.
    size: how many.
  """
  return rule, tuple(stop), size


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([], (None, (), 1)),
        (['--rule=linear,0.5'], (('linear', 0.5), (), 1)),
        (
            ['--rule', 'typical, 0.09,3e-1'],
            (('typical', 0.09, 0.3), (), 1),
        ),
        (['--rule=name'], (('name',), (), 1)),
        (['--rule=a,1,b'], (('a', 1.0, 'b'), (), 1)),
        (['--stop=a', '--size=2', '--stop', 'b,c'], (None, ('a', 'b,c'), 2)),
        (['--stop= \n', '--stop='], (None, (' \n', ''), 1)),
        (['--stop=-->'], (None, ('-->',), 1)),
    ],
)
def test_tuples_and_flags_that_are_repeated(arguments, expected):
  parser = argparse.ArgumentParser(prog='several')
  flags.add(parser, several)
  for _ in range(2):  # nothing is kept from one call to the next
    assert flags.call(several, parser.parse_args(arguments)) == expected


def test_help_says_what_a_tuple_is(capsys):
  parser = argparse.ArgumentParser(prog='several')
  flags.add(parser, several)
  with pytest.raises(SystemExit):
    parser.parse_args(['--help'])
  text = ' '.join(capsys.readouterr().out.split())
  assert '--rule NAME,NUMBER a name and numbers.' in text
  assert '--stop TEXT any of them.' in text


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
