"""Shape checks: what they return, and what their errors say."""

from hypothesis import given
from hypothesis import strategies
import numpy as np
import pytest

from distillspec_jax.core import shapes


def test_sizes_are_returned_by_axis_name():
  sizes = shapes.bind_shapes(
      values=(np.zeros((8, 128)), 'B T'), mask=(np.zeros((8, 128)), 'B T')
  )
  assert sizes == {'B': 8, 'T': 128}


def test_an_axis_of_two_sizes_names_both_arrays():
  with pytest.raises(ValueError) as error:
    shapes.bind_shapes(
        q_logits=(np.zeros((32, 4, 32000)), 'B G V'),
        p_logits=(np.zeros((32, 4, 32128)), 'B G V'),
    )
  assert str(error.value) == (
      'Axis V is 32000 in `q_logits` but 32128 in `p_logits`, which has shape'
      ' (32, 4, 32128) for [B, G, V].'
  )


def test_another_rank_names_shape_and_axes():
  with pytest.raises(ValueError) as error:
    shapes.bind_shapes(mask=(np.zeros((8, 2, 3)), 'B T'))
  assert str(error.value) == (
      '`mask` has shape (8, 2, 3), but [B, T] needs 2 axes.'
  )


def test_an_axis_may_not_have_two_sizes_in_one_array():
  with pytest.raises(ValueError, match='Axis B is 2 in `square` but 3'):
    shapes.bind_shapes(square=(np.zeros((2, 3)), 'B B'))


@given(
    leading=strategies.lists(strategies.integers(0, 3), max_size=3),
    size=strategies.integers(0, 5),
)
def test_an_ellipsis_matches_any_number_of_axes(leading, size):
  array = np.zeros((*leading, size))
  assert shapes.bind_shapes(logits=(array, '... V')) == {'V': size}


def test_an_ellipsis_does_not_hide_a_missing_axis():
  with pytest.raises(ValueError, match='needs 2 axes'):
    shapes.bind_shapes(logits=(np.zeros(3), '... T V'))


def test_no_axes_is_a_scalar():
  assert shapes.bind_shapes(loss=(np.float32(1), '')) == {}
  with pytest.raises(ValueError, match='needs 0 axes'):
    shapes.bind_shapes(loss=(np.zeros(1), ''))
