"""Slices by name, and how long chips need to exchange data."""

import pytest

from distillspec_jax.core import errors
from distillspec_jax.planning import topologies


@pytest.mark.parametrize(
    'text, layout, chips',
    [
        ('v5e-256', 'v5e:16x16', 256),
        ('v5e:4x4', 'v5e:4x4', 16),
        ('v4-128', 'v4:4x4x4', 64),  # the number counts cores, two a chip
        ('v5p-8', 'v5p:2x2x1', 4),
        ('v6e-1', 'v6e:1x1', 1),
        ('v4:1x1x1', 'v4:1x1x1', 1),  # a chip of a host
        ('v5p:4x4x12', 'v5p:4x4x12', 192),
    ],
)
def test_a_slice_is_found_by_name_or_shape(text, layout, chips):
  topology = topologies.parse(text)
  assert (topology.layout, topology.chips) == (layout, chips)
  assert topologies.parse(topology.layout) == topology


@pytest.mark.parametrize(
    'text', ['v9-8', 'v5e', 'v5e-7', 'v5e:4x4x4', 'v5e:3x3', 'v4-', '']
)
def test_an_unknown_slice_lists_the_known_ones(text):
  with pytest.raises(errors.UserError, match=r'v4-128.*v5e-256.*v6e-256'):
    topologies.parse(text)


def test_every_known_name_is_found():
  names = topologies.known()
  assert [topologies.parse(name).name for name in names] == names


def test_an_axis_that_wraps_has_two_links():
  slice_ = topologies.parse('v5e:16x16')
  row = [(i, 0) for i in range(16)]
  # 15/16 of 96 MB at 2 x 45 GB/s is 1 ms; the farthest chip is 8 hops away.
  seconds = slice_.exchange_s('all-gather', 96_000_000, row)
  assert seconds == pytest.approx(1e-3 + 8e-6)
  half = slice_.exchange_s('all-gather', 96_000_000, row[:8])
  assert half == pytest.approx(7 / 8 * 96e6 / 45e9 + 7e-6)


def test_an_all_reduce_goes_round_twice():
  slice_ = topologies.parse('v4:4x4x4')
  everyone = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
  assert topologies.moved_bytes('all-reduce', 64, 64) == 126
  seconds = slice_.exchange_s('all-reduce', 64_000_000, everyone)
  assert seconds == pytest.approx(126e6 / (6 * 45e9) + 2 * 6e-6)


def test_a_chip_needs_no_time_for_itself():
  slice_ = topologies.parse('v5e-1')
  assert slice_.exchange_s('all-reduce', 10**9, [(0, 0)]) == 0.0
