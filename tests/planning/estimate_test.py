"""Seconds and FLOPs by hand, on handmade blocks."""

import dataclasses

import pytest

from distillspec_jax.models import config as config_lib
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import estimate
from distillspec_jax.planning import hlo
from distillspec_jax.planning import topologies
from tests.planning import tiny

V5E = topologies.parse('v5e:2x2')  # 1.5e9 cycles a second, no axis wraps
PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))


def exchange(size, hidden=False, kind='all-gather'):
  return hlo.Collective(kind, f'u8[{size}]', size, (0, 1), hidden)


def program(block):
  return compiled_program.CompiledProgram(0.0, block=block, places=PLACES)


def seconds(block, trips=(0,)):
  return estimate.cost(block, V5E, PLACES, trips).seconds


def test_cycles_count_as_often_as_loops_run():
  inner = hlo.Block('', trips=10, cycles=3_000_000)
  block = hlo.Block('', 1, cycles=1_500_000, inner=[inner])
  assert seconds(block) == pytest.approx(1e-3 + 10 * 2e-3)


def test_trips_that_depend_on_data_are_given_by_depth():
  inner = hlo.Block('', None, cycles=1_500_000)
  outer = hlo.Block('', None, cycles=1_500_000, inner=[inner])
  block = hlo.Block('', 1, inner=[outer])
  # Twice 1 ms, in each of them three times 1 ms.
  assert seconds(block, (2, 3)) == pytest.approx(8e-3)
  # The last number holds for deeper loops, too.
  assert seconds(hlo.Block('', None, inner=[block]), (2, 3)) == (
      pytest.approx(8e-3)
  )


def test_what_overlaps_with_work_counts_as_far_as_it_takes_longer():
  shared = dict(op_name='', trips=1, cycles=1_500_000)  # 1 ms
  # A half of 90 MB over one link of 45 GB/s: 1 ms, and a microsecond a hop.
  waited = hlo.Block(**shared, collectives=[exchange(90_000_000)])
  assert seconds(waited) == pytest.approx(2e-3 + 1e-6)
  overlapped = hlo.Block(**shared, collectives=[exchange(90_000_000, True)])
  assert seconds(overlapped) == pytest.approx(1e-3 + 1e-6)
  longer = hlo.Block(**shared, collectives=[exchange(270_000_000, True)])
  assert seconds(longer) == pytest.approx(3e-3 + 1e-6)


def test_the_roofline_is_the_longest_of_three():
  block = hlo.Block('', 1, 1_500_000, flops=98.5e9, hbm_bytes=81_900_000)
  cost = estimate.cost(block, V5E, PLACES, (0,))
  # 98.5 GFLOP take half a millisecond at 197 TFLOP/s, 81.9 MB a tenth.
  assert cost.ideal_s(V5E.chip) == pytest.approx(0.5e-3)
  assert cost.roofline(V5E.chip) == pytest.approx(0.5)


def test_nothing_is_faster_than_the_chip():
  # A millisecond of cycles; 819 MB take a whole one, 1.638 GB take two.
  possible = hlo.Block('', 1, 1_500_000, hbm_bytes=819_000_000)
  cost = estimate.cost(possible, V5E, PLACES, (0,))
  assert (cost.seconds, cost.added_s) == (pytest.approx(1e-3), 0.0)
  for needs in ({'hbm_bytes': 1_638_000_000}, {'flops': 394e9}):
    block = hlo.Block('', 1, 1_500_000, **needs)
    cost = estimate.cost(block, V5E, PLACES, (0,))
    assert cost.seconds == pytest.approx(2e-3)
    assert cost.added_s == pytest.approx(1e-3)
  # A kernel has no cycles: it takes what it needs, after all else.
  kernel = hlo.Kernel(flops=197e9, hbm_bytes=0)
  block = hlo.Block('', 1, 1_500_000, flops=197e9, kernels=[kernel])
  cost = estimate.cost(block, V5E, PLACES, (0,))
  assert (cost.seconds, cost.added_s) == (pytest.approx(2e-3), 0.0)


def test_flops_of_a_model_by_hand():
  model = config_lib.T5Config(
      vocab_size=100,
      emb_dim=8,
      num_heads=2,
      head_dim=3,
      mlp_dim=10,
      num_encoder_layers=1,
      num_decoder_layers=1,
  )
  weights = 4 * 8 * 6 + 3 * 8 * 10  # of a layer: attention, gated feed-forward
  encoder = 5 * weights + 2 * 5 * 5 * 6
  cross = 2 * 5 * 8 * 6 + 2 * 4 * 8 * 6 + 2 * 4 * 5 * 6
  decoder = 4 * weights + 2 * 4 * 4 * 6 + cross
  expected = 2 * 3 * (encoder + decoder + 4 * 8 * 100)
  assert estimate.forward_flops(model, 3, 5, 4) == expected
  # A draft that shares the encoder projects its output instead.
  draft = dataclasses.replace(model, num_encoder_layers=0, encoded_dim=7)
  shared = 2 * 3 * (5 * 7 * 8 + decoder + 4 * 8 * 100)
  assert estimate.forward_flops(draft, 3, 5, 4) == shared


def test_a_step_without_rollouts_is_what_is_utilised():
  rollout = hlo.Block('jit(step)/jit(generate)/while', None, cycles=1_500_000)
  block = hlo.Block('', 1, cycles=1_500_000, inner=[rollout])
  step = estimate.step(tiny.config(), program(block))
  assert step.total.seconds == pytest.approx(9e-3)  # of 8 tokens
  assert step.rollout.seconds == pytest.approx(8e-3)
  forward = estimate.forward_flops(tiny.MODEL, 8, 16, 8)
  assert step.model_flops == 4 * forward / 4  # target once, draft three times
  assert step.mfu == pytest.approx(forward / (1e-3 * 197e12))


def samplers(config, inner):
  """A token of the target takes 1 ms, a block 0.8 ms and what is in it."""
  layers = hlo.Block('while/body/decoder.run/while', 2, cycles=300_000)
  block = hlo.Block('', None, cycles=1_200_000, inner=[layers, *inner])
  prefill = 3_000_000
  token = hlo.Block('', None, cycles=1_500_000)
  return estimate.sampling(
      config,
      program(hlo.Block('', 1, cycles=prefill, inner=[block])),
      program(hlo.Block('', 1, cycles=prefill, inner=[token])),
  )


def test_a_block_is_drafts_and_a_verification():
  draft = hlo.Block('while/body/draft_loop/while', 3, cycles=150_000)  # 0.1 ms
  sampling = samplers(tiny.config(), [draft])
  # The first of four tokens is drafted before the loop.
  assert sampling.block.seconds == pytest.approx(1.2e-3 + 3 * 0.1e-3)
  assert sampling.cost_ratio == pytest.approx(0.1)
  assert sampling.verify_ratio(4) == pytest.approx(1.5 - 4 * 0.1)
  assert sampling.prefill_s == pytest.approx(2e-3)
  # Where the draft may stop early, blocks are taken to be of full length.
  draft.trips = None
  assert samplers(tiny.config(), [draft]) == sampling


def test_a_block_may_be_too_short_for_a_loop():
  # Its body, with the loop over layers, then is a part of the block.
  layers = hlo.Block('draft_loop/while/body/run/while', 2, cycles=75_000)
  sampling = samplers(tiny.config(), [layers])
  assert sampling.draft is None
  assert sampling.block.seconds == pytest.approx(1.2e-3 + 0.1e-3)


def test_equal_exchanges_are_added_up():
  loop = hlo.Block('', 3, collectives=[exchange(100), exchange(100)])
  block = hlo.Block('', 1, collectives=[exchange(1000)], inner=[loop])
  first, second = estimate.exchanges('step', program(block), (0,))
  assert (first.count, first.bytes) == (1, 500)
  assert (second.count, second.bytes, second.chips) == (6, 300, 2)
