"""Relative position buckets against t5x, and the two ways to the bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.models import relative_position


@pytest.mark.parametrize(
    'name, bidirectional', [('bidirectional', True), ('causal', False)]
)
def test_buckets_are_those_of_t5x(shared, name, bidirectional):
  golden = np.load(shared / 'golden/t5x/relpos_buckets.npz')
  buckets = relative_position.bucket(
      golden['relative_position'], bidirectional, 32, 128
  )
  assert buckets.dtype == np.int32
  np.testing.assert_array_equal(buckets, golden[name])


def test_near_distances_have_their_own_and_far_ones_share_the_last():
  causal = relative_position.bucket(-np.arange(1000), False, 32, 128)
  np.testing.assert_array_equal(causal[:16], np.arange(16))
  assert (np.diff(causal) >= 0).all() and (np.diff(causal) <= 1).all()
  assert (causal[128:] == 31).all()
  after = relative_position.bucket(np.arange(1000), False, 32, 128)
  assert (after == 0).all()


def test_both_directions_split_the_buckets_in_halves():
  distance = np.arange(1, 300)
  before = relative_position.bucket(-distance, True, 32, 128)
  after = relative_position.bucket(distance, True, 32, 128)
  np.testing.assert_array_equal(after, before + 16)
  assert before.max() == 15


def test_other_sizes_are_respected():
  table = relative_position.bucket(-np.arange(100), False, 8, 20)
  assert table.max() == 7
  assert (table[20:] == 7).all()
  assert table[4] == 4 and table[3] == 3


def test_rows_at_their_own_positions_see_the_rows_of_the_square():
  length, keys = 200, 160  # beyond the largest distance, 128
  embedding = jax.random.normal(jax.random.key(0), (3, 32))
  square = relative_position.bias(
      embedding, relative_position.square(length, length, False, 32, 128)
  )
  starts = np.array([0, 5, 127, 131, 150])
  positions = jnp.asarray(starts[:, None] + np.arange(4))
  bias = relative_position.bias(
      embedding,
      relative_position.from_positions(
          positions, jnp.arange(keys)[None], 32, 128
      ),
  )
  assert bias.shape == (5, 3, 4, keys)
  for row, start in enumerate(starts):
    for n in range(4):
      seen = start + n + 1  # causal: later keys are masked anyway
      np.testing.assert_array_equal(
          bias[row, :, n, :seen], square[0, :, start + n, :seen][:, :keys]
      )
