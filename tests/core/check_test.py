"""Checks that name what is wrong, its value and the limit."""

import numpy as np
import pytest

from distillspec_jax.core import check
from distillspec_jax.core import errors


@pytest.mark.parametrize(
    'value', [0, 0.5, 2.5, 3.0, float('nan'), True, None, '3', [3]]
)
def test_at_least(value):
  check.at_least(1, repeats=1, length=np.int32(2))
  with pytest.raises(errors.UserError, match=r'length is .*at least 1 \(one\)'):
    check.at_least(1, hint='one', repeats=1, length=value)


@pytest.mark.parametrize('value', [4, pytest.param(10**5000, id='long')])
def test_more_than_the_most_is_refused(value):
  check.at_least(1, max_value=3, length=3)
  with pytest.raises(errors.UserError, match='length is .*be at most 3'):
    check.at_least(1, max_value=3, length=value)


@pytest.mark.parametrize(
    'value', [-1, 2**32, 1.0, None, pytest.param(10**5000, id='long')]
)
def test_seeds(value):
  check.seed(seed=2**32 - 1)
  with pytest.raises(errors.UserError, match='seed is .* 32 bits'):
    check.seed(seed=value)


def test_long_values_are_cut_short():
  assert check.shown(range(5)) == 'range(0, 5)'
  assert len(check.shown([7] * 1000)) == 203
  assert check.shown(10**5000) == 'an integer of thousands of digits'


@pytest.mark.parametrize(
    'interval, inside, outside',
    [
        ('[0, 1]', (0, 0.5, 1), (-0.1, 1.1, float('nan'))),
        ('(0, 1]', (0.5, 1), (0, 2)),
        ('[0, 1)', (0, 0.5), (1, -1)),
        ('(0, inf)', (0.1, 1e9), (0, float('inf'), 10**400)),
    ],
)
def test_in_interval(interval, inside, outside):
  for value in inside:
    check.in_interval(interval, top_p=value)
  for value in outside:
    with pytest.raises(errors.UserError, match='Sampling.top_p is .*lie in'):
      check.in_interval(interval, owner='Sampling', top_p=value)


def test_one_of():
  check.one_of(('a', 'b'), form='a')
  with pytest.raises(errors.UserError, match="form is 'c'; .* 'a', 'b'"):
    check.one_of(('a', 'b'), form='c')
  for value in (np.ones(2), ['a']):
    with pytest.raises(errors.UserError, match='form is .*; it must be one of'):
      check.one_of({'a', 'b'}, form=value)


def test_text():
  check.text(split='test')
  with pytest.raises(errors.UserError, match=r"split is \['test'\]; it must"):
    check.text(split=['test'])
