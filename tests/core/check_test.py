"""Checks that name what is wrong, its value and the limit."""

import pytest

from distillspec_jax.core import check
from distillspec_jax.core import errors


@pytest.mark.parametrize('value', [0, 0.5, float('nan'), True, None, '3'])
def test_at_least(value):
  check.at_least(1, repeats=1, length=2.5)
  with pytest.raises(errors.UserError, match=r'length is .*at least 1 \(one\)'):
    check.at_least(1, hint='one', repeats=1, length=value)


@pytest.mark.parametrize(
    'interval, inside, outside',
    [
        ('[0, 1]', (0, 0.5, 1), (-0.1, 1.1, float('nan'))),
        ('(0, 1]', (0.5, 1), (0, 2)),
        ('[0, 1)', (0, 0.5), (1, -1)),
        ('(0, inf)', (0.1, 1e9), (0, float('inf'))),
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
