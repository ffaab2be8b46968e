import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import metrics


def test_exact_match():
  found = metrics.exact_match(['a b', ' c ', 'd'], ['a b', 'c', 'e'])
  np.testing.assert_array_equal(found, [1.0, 1.0, 0.0])


def test_final_number():
  label = 'so 2 + 2 = 4\n#### 1,234'
  answers = ['x #### 1234', '#### 12', 'nothing', '####1,234', '1234']
  found = metrics.final_number(answers, [label] * 5)
  np.testing.assert_array_equal(found, [1.0, 0.0, 0.0, 1.0, 0.0])


def test_names():
  assert metrics.named('exact_match') is metrics.exact_match
  with pytest.raises(errors.UserError, match="'rouge'; known are exact_match"):
    metrics.named('rouge')
