import functools

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import metrics


def length(answers, labels):
  del labels
  return [len(answer) for answer in answers]


def test_exact_match():
  values = metrics.exact_match(['a b', ' c ', 'd'], ['a b', 'c', 'e'])
  np.testing.assert_array_equal(values, [1.0, 1.0, 0.0])


def test_final_number():
  label = 'so 2 + 2 = 4\n#### 1,234'
  answers = ['x #### 1234', '#### 12', 'nothing', '####1,234', '1234']
  values = metrics.final_number(answers, [label] * 5)
  np.testing.assert_array_equal(values, [1.0, 0.0, 0.0, 1.0, 0.0])


def test_edit_similarity():
  answers = ['return x', 'return y', '', '']
  values = metrics.edit_similarity(answers, ['return x', 'return', 'x', ''])
  # 'return' is in common: twice 6 of 8 + 6 characters.
  np.testing.assert_allclose(values, [1.0, 12 / 14, 0.0, 1.0])


def test_a_metric_is_a_name_or_a_function():
  resolved = metrics.resolve(('exact_match', length))
  assert resolved == (metrics.exact_match, length)
  assert metrics.resolve(resolved) == resolved
  values = metrics.measure(resolved, ['ab', 'c'], ['ab', 'd'])
  assert list(values) == ['exact_match', 'length']
  assert all(value.dtype == np.float64 for value in values.values())
  np.testing.assert_array_equal(values['length'], [2.0, 1.0])


@pytest.mark.parametrize(
    'wrong, message',
    [
        ('rouge', "metric is 'rouge'; it must be one of 'exact_match', 'final"),
        (3, '3 is not a metric'),
        (functools.partial(length), 'partial.* is not a metric.*__name__'),
        (length, 'exact_match, length, length must have different names'),
    ],
)
def test_what_is_no_metric_is_refused(wrong, message):
  with pytest.raises(errors.UserError, match=message):
    metrics.resolve(('exact_match', length, wrong))


def test_a_metric_returns_one_number_per_answer():
  def mean(answers, labels):
    del answers, labels
    return 0.5

  with pytest.raises(
      errors.UserError, match=r'mean returns shape \(\) for 2 answers'
  ):
    metrics.measure([mean], ['a', 'b'], ['a', 'b'])
