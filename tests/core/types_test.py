"""Means that add up, whatever the parts they were counted in."""

from hypothesis import given
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import types


def mean(values):
  return types.Mean(jnp.float32(sum(values)), jnp.float32(len(values)))


@given(
    strategies.lists(strategies.integers(-100, 100), max_size=20),
    strategies.lists(strategies.integers(-100, 100), max_size=20),
)
def test_merged_parts_are_the_mean_of_all(first, second):
  merged = mean(first).merge(mean(second))
  assert merged == mean(first + second)
  if first + second:
    assert merged.value() == pytest.approx(np.mean(first + second), abs=1e-5)


def test_nothing_counted_is_zero_and_not_nan():
  assert mean([]).value() == 0.0


def test_a_batch_is_a_pytree_with_named_leaves():
  row = np.ones((2, 3), np.int32)
  batch = types.Batch(row, row, row, row, row > 0)
  doubled = jax.tree.map(lambda leaf: leaf + leaf, batch)
  assert len(jax.tree.leaves(batch)) == 5
  np.testing.assert_array_equal(doubled.labels, 2 * row)
  with pytest.raises(AttributeError):
    batch.labels = row


def test_the_prompt_of_a_batch_is_its_inputs():
  row = np.ones((2, 3), np.int32)
  batch = types.Batch(row, 2 * row, 3 * row, 4 * row, row > 0)
  assert len(jax.tree.leaves(batch.prompt)) == 2  # nothing is encoded yet
  np.testing.assert_array_equal(batch.prompt.tokens, row)
  np.testing.assert_array_equal(batch.prompt.segments, 2 * row)
  assert batch.prompt.encoded is None
