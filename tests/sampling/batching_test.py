"""Rows of any lengths become batches of few shapes."""

import collections

import numpy as np
import pytest

from distillspec_jax.sampling import batching


@pytest.mark.parametrize('size', [1, 3, 8])
@pytest.mark.parametrize('seed', range(3))
def test_every_input_is_in_one_batch_that_is_wide_enough(seed, size):
  lengths = np.random.default_rng(seed).geometric(0.03, 200).tolist()
  batches = list(batching.plan(lengths, size))
  numbers = sum((batch.numbers for batch in batches), [])
  assert sorted(numbers) == list(range(200))
  for batch in batches:
    assert 1 <= len(batch.numbers) <= size
    assert batch.numbers == sorted(batch.numbers)
    assert max(lengths[i] for i in batch.numbers) <= batch.width
  # Widths are those of inputs, and each is worth a program.
  count = collections.Counter()
  for batch in batches:
    count[batch.width] += len(batch.numbers)
  widths = {batching.width(length) for length in lengths}
  assert set(count) <= widths
  assert all(n >= size for width, n in count.items() if width != max(widths))


def test_inputs_of_similar_length_go_together():
  lengths = [3, 100, 5, 90, 4, 120, 2, 101]
  assert list(batching.plan(lengths, 4)) == [
      batching.Batch([0, 2, 4, 6], 8),
      batching.Batch([1, 3, 5, 7], 128),
  ]


def test_a_window_bounds_the_wait():
  lengths = [3] * 100 + [50] * 100
  order = sum((b.numbers for b in batching.plan(lengths[::-1], 2)), [])
  late = max(number - position for position, number in enumerate(order))
  assert late < 32


@pytest.mark.parametrize('start', [0, 1, 7, 39, 40])
def test_what_is_done_is_left_out(start):
  lengths = np.random.default_rng(5).integers(0, 60, 40).tolist()
  batches = list(batching.plan(lengths, 4))
  rest = list(batching.plan(lengths, 4, start))
  assert rest == [batch for batch in batches if max(batch.numbers) >= start]


def test_nothing_needs_no_batch():
  assert list(batching.plan([], 4)) == []
  assert list(batching.plan([0, 0], 4)) == [batching.Batch([0, 1], 0)]


@pytest.mark.parametrize(
    'length, width', [(0, 0), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32)]
)
def test_widths_are_powers_of_two(length, width):
  assert batching.width(length) == width


def test_padding_is_marked():
  tokens, segments = batching.pad([[5, 6], [], [7]], 3)
  np.testing.assert_array_equal(tokens, [[5, 6, 0], [0, 0, 0], [7, 0, 0]])
  np.testing.assert_array_equal(segments, tokens != 0)
  assert tokens.dtype == segments.dtype == np.int32
  assert batching.pad([[1] * 9])[0].shape == (1, 16)
