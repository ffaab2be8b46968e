"""Plans against a simulation of decoding, and what they are made of."""

import dataclasses

import numpy as np
import pytest

import distillspec_jax as ds
from distillspec_jax.core import errors
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.evaluation.speed import block_length as block_length_lib
from distillspec_jax.evaluation.speed import costs as costs_lib
from tests import tiny

POSITIONS = (0.8, 0.7, 0.9, 0.3, 0.1)
LENGTHS = (12, 30, 31)


def prices(draft=0.1, verify=1.2, step=1.0):
  """Costs that are set by hand."""
  return costs_lib.Costs(
      prefill=2.0,
      step=step,
      draft_prefill=1.0,
      draft_first=1.5 * draft,
      draft=draft,
      verify={size: verify for size in (1, 3, 5)},
  )


def simulated_speedup(size, costs, rows, batches=20_000):
  """Decoding as the sampler's loop does it, by the prices; and its error."""
  rng = np.random.default_rng(0)
  lengths = rng.choice(LENGTHS, (batches, rows))
  left, calls = lengths.copy(), np.zeros(batches)
  while (left > 0).any():
    calls += (left > 0).any(axis=1)
    passes = rng.random((batches, rows, size)) < POSITIONS[:size]
    left -= 1 + np.cumprod(passes, axis=2).sum(axis=2)
  plain = costs.prefill + costs.step * lengths.max(axis=1)
  fast = costs.prefill + costs.draft_prefill + calls * costs.block(size)
  ratio = plain.mean() / fast.mean()
  spread = np.std(plain / plain.mean() - fast / fast.mean())
  return ratio, ratio * spread / np.sqrt(batches)


@pytest.mark.parametrize('rows', [1, 8])
@pytest.mark.parametrize('size', [1, 3, 5])
def test_predictions_are_what_a_simulation_gives(size, rows):
  costs = prices()
  plan = block_length_lib.plan(POSITIONS, LENGTHS, costs, rows)
  expected, error = simulated_speedup(size, costs, rows)
  # A false alarm of 1e-6.
  assert abs(plan.speedups[size] - expected) < 4.9 * error


def test_rows_that_wait_lower_the_speedup():
  one = block_length_lib.plan(POSITIONS, [30], prices(), rows=1)
  eight = block_length_lib.plan(POSITIONS, [30], prices(), rows=8)
  for size in (1, 3, 5):
    assert eight.speedups[size] < one.speedups[size]


def test_the_best_length_is_chosen():
  plan = block_length_lib.plan(POSITIONS, LENGTHS, prices(), rows=1)
  assert plan.speedups[3] > max(plan.speedups[1], plan.speedups[5])
  assert plan.block_length == 3
  assert plan.speedup == plan.speedups[3] > 1.0
  assert plan.acceptance == POSITIONS
  assert plan.block_efficiency[3] == pytest.approx(1 + 0.8 + 0.56 + 0.504)


def test_a_costly_draft_is_left_alone():
  plan = block_length_lib.plan(POSITIONS, LENGTHS, prices(draft=0.9), rows=1)
  assert plan.block_length is None
  assert plan.speedup == 1.0
  assert max(plan.speedups.values()) < 1.0


def test_encoders_decide_where_outputs_are_short():
  costs = prices()._replace(draft_prefill=30.0)
  for length, planned in ((4, None), (400, 3)):
    plan = block_length_lib.plan(POSITIONS, [length], costs, rows=1)
    assert plan.block_length == planned


def test_positions_that_were_never_reached_are_never_accepted():
  reached = np.array([[4, 2, 0], [4, 0, 0]])
  accepted = np.array([[2, 1, 0], [0, 0, 0]])
  acceptance = block_length_lib.acceptance_by_position(reached, accepted)
  assert acceptance == (0.25, 0.5, 0.0)


def test_acceptance_at_too_few_positions_is_an_error():
  with pytest.raises(
      errors.UserError, match='known for 2 positions.* blocks of 5'
  ):
    block_length_lib.plan(POSITIONS[:2], LENGTHS, prices(), rows=1)


def measured(monkeypatch, verify_s):
  """What `plan_block_length` times, with prices set by hand."""
  asked = []

  def measure(target, draft, prompt, decodings):
    asked.append((prompt, decodings))
    verify = {decoding.drafting.length: verify_s for decoding in decodings}
    return prices(draft=0.05)._replace(verify=verify)

  monkeypatch.setattr(costs_lib, 'measure', measure)
  return asked


def decoding(max_new_tokens, **changes):
  return ds.Decoding(max_new_tokens=max_new_tokens).replace(**changes)


def test_a_plan_of_a_pair(monkeypatch):
  asked = measured(monkeypatch, verify_s=1.0)
  rows = np.random.default_rng(0).integers(2, tiny.V, (5, 6))
  plan = ds.plan_block_length(
      tiny.target(),
      tiny.draft(scale=0.0),
      rows,
      block_lengths=(2, 4),
      decoding=decoding(8, temperature=0.5, eos_ids=(0, 39)),
      batch_size=3,
  )
  assert isinstance(plan, ds.BlockLengthPlan)
  # The draft is the target: nearly everything is accepted.
  assert plan.acceptance == pytest.approx((1.0,) * 4, abs=0.01)
  assert plan.block_length == 4
  ((read, decodings),) = asked
  assert read.tokens.shape == (3, 6)
  assert [d.drafting.length for d in decodings] == [2, 4]
  assert {d.sampling.temperature for d in decodings} == {0.5}
  assert {d.eos_ids for d in decodings} == {(0, 39)}


def test_a_plan_may_be_not_to_speculate(monkeypatch):
  measured(monkeypatch, verify_s=100.0)
  rows = np.full((2, 4), 7)
  plan = ds.plan_block_length(
      tiny.target(),
      tiny.draft(),
      rows,
      block_lengths=(2,),
      decoding=decoding(4),
  )
  assert plan.block_length is None


def test_costs_are_measured_on_rows_of_a_typical_length(monkeypatch):
  asked = measured(monkeypatch, verify_s=1.0)
  model = tiny.target(384)
  vocabulary = vocabulary_kinds.Bytes()
  pair = [tiny.with_vocabulary(m, vocabulary) for m in (model, tiny.draft(384))]
  texts = ['a' * 5] * 6 + ['b' * 40]
  ds.plan_block_length(
      *pair, texts, block_lengths=(1,), decoding=decoding(2), batch_size=2
  )
  ((read, _),) = asked
  assert read.tokens.shape == (2, 8)  # five bytes and EOS, padded


def test_adaptive_length_is_refused():
  adaptive = decoding(4, adaptive=ds.Confidence(0.4))
  with pytest.raises(errors.UserError, match=r'adaptive is confidence\(0.4\)'):
    ds.plan_block_length(
        tiny.target(), tiny.draft(), np.ones((1, 2)), decoding=adaptive
    )


def test_no_block_lengths_are_an_error():
  with pytest.raises(errors.UserError, match='block_lengths is empty'):
    ds.plan_block_length(
        tiny.target(), tiny.draft(), np.ones((1, 2)), block_lengths=()
    )


def test_the_fastest_draft_and_way_of_drafting_are_chosen(monkeypatch):
  plain = tiny.draft()
  parallel = dataclasses.replace(
      plain, model=tiny.changed(plain.model, plain.model.params, mask_token=2)
  )
  speedups = {(0, False): 1.2, (1, False): 1.1, (1, True): 1.5}
  drafts, asked = [plain, parallel], []

  def planned(target, draft, inputs, *, decoding, batch_size):
    assert batch_size == 8 and decoding.sampling.temperature == 0.5
    way = drafts.index(draft), decoding.drafting.parallel
    asked.append(way)
    speedup = speedups[way]
    size = 3 if speedup > 1.0 else None
    return block_length_lib.BlockLengthPlan(size, speedup, {}, {}, ())

  monkeypatch.setattr(block_length_lib, 'plan_block_length', planned)
  half = decoding(4, temperature=0.5)
  choose = lambda: ds.plan_decoding(
      tiny.target(), drafts, np.ones((1, 2)), decoding=half, batch_size=8
  )
  plan = choose()
  assert asked == list(speedups) == list(plan.plans)
  assert (plan.draft, plan.speedup) == (parallel, 1.5)
  assert plan.decoding == half.replace(length=3, parallel=True)
  speedups[1, True] = 1.15
  assert choose()[:2] == (plain, half.replace(length=3))
  speedups.update(dict.fromkeys(speedups, 1.0))
  assert choose()[:3] == (None, half, 1.0)


def test_no_drafts_are_an_error():
  with pytest.raises(errors.UserError, match='drafts is empty'):
    ds.plan_decoding(tiny.target(), [], np.ones((1, 2)))
