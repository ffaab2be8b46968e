"""The steps that are timed are those of decoding, and how costs add up."""

import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from tests import tiny

L = 8


DECODING = decoding_lib.Decoding(
    drafting=decoding_lib.Drafting(length=3), max_new_tokens=L, eos_ids=()
)


def prompt():
  return jax.device_put(tiny.batch(2).prompt)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_steps_are_those_of_autoregressive_decoding(loops, temperature):
  decoding = DECODING.replace(temperature=temperature)
  model = tiny.target().model
  costs.step(model, prompt(), decoding, tiny.V, speculative=False)
  expected = autoregressive.generate(
      model, prompt(), costs.row_keys(2), decoding.without_draft()
  )
  (run,) = loops
  for steps in (1, 2, L):
    _, tokens = run(steps)
    np.testing.assert_array_equal(tokens[:, 0], expected.tokens[:, steps - 1])


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_block_is_read_and_judged_anew_in_every_step(loops, temperature):
  decoding = DECODING.replace(temperature=temperature)
  costs.verify(tiny.target().model, prompt(), decoding, tiny.V)
  (run,) = loops
  first, second = run(1), run(2)
  assert first[1].shape == (2, 4)  # the last token and three that are drafted
  assert not np.array_equal(first[1], second[1])
  if temperature:
    assert first[2].shape == (2, 3, tiny.V)
    assert not np.array_equal(first[2], second[2])
  state = second[0]
  assert jax.tree.leaves(state.cache)[0].shape[2] == L + 3 + 1
  np.testing.assert_array_equal(state.length, [2, 2])


def test_a_first_step_reads_two_tokens(loops):
  costs.step(tiny.draft().model, prompt(), DECODING, tiny.V, tokens=2)
  (run,) = loops
  assert run(1)[1].shape == (2, 2)


def test_a_trimmed_vocabulary_proposes_its_own_tokens(loops):
  draft = tiny.trimmed_draft()
  costs.step(draft.model, prompt(), DECODING, tiny.V)
  (run,) = loops
  _, tokens = run(1)
  assert set(np.asarray(tokens).flat) <= set(draft.config.trimmed_vocabulary)


def test_costs_add_up():
  total = costs.Costs(10.0, 4.0, 5.0, 1.5, 1.0, {1: 5.0, 3: 6.0})
  assert total.draft_ratio(1) == total.draft_ratio(3) == 0.25
  assert total.verify_ratio(3) == 1.5
  assert total.block(1) == 1.5 + 5.0
  assert total.block(3) == 1.5 + 2 * 1.0 + 6.0


def test_a_parallel_draft_takes_one_step():
  total = costs.Costs(10.0, 4.0, 5.0, 1.5, 1.0, {3: 6.0}, {3: 2.0})
  assert total.block(3) == 2.0 + 6.0
  assert total.draft_ratio(3) == 0.5
  decodings = [
      DECODING.replace(length=length, parallel=True) for length in (1, 2)
  ]
  measured = costs.measure(
      tiny.target().model, tiny.parallel_draft().model, prompt(), decodings
  )
  assert set(measured.parallel) == {1, 2}
  assert all(seconds > 0 for seconds in measured.parallel.values())


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_its_step_reads_two_blocks_and_chooses_one(loops, temperature):
  decoding = DECODING.replace(temperature=temperature)
  model = tiny.draft().model
  costs.step(model, prompt(), decoding, tiny.V, tokens=6, drafted=3)
  (run,) = loops
  (_, first), (state, second) = run(1), run(2)
  assert second.shape == (2, 6)
  assert not np.array_equal(first, second)
  slots = jax.tree.leaves(state.cache)[0].shape[2]
  lengths = [int(run(steps)[0].length.max()) for steps in range(1, L + 1)]
  assert max(lengths) == slots - 6  # so that the block fits
  if not temperature:  # each of the three that are chosen matters
    state, _ = costs.prefilled(model, prompt(), slots)
    hidden, _ = model.extend(state, 0 * first)
    tokens = np.argmax(model.unembed(hidden[:, -3:]), axis=-1)
    np.testing.assert_array_equal(first[:, 0], tokens.sum(axis=1) % tiny.V)


@pytest.mark.parametrize('paths', [1, 2])
def test_every_cost_of_a_pair_is_measured(paths):
  decodings = [
      DECODING.replace(temperature=1.0, length=length, paths=paths)
      for length in (1, 2)
  ]
  *single, verify, parallel = costs.measure(
      tiny.target().model, tiny.draft().model, prompt(), decodings
  )
  assert all(seconds > 0 for seconds in single)
  assert set(verify) == {1, 2} and not parallel
  assert all(seconds > 0 for seconds in verify.values())


def test_all_paths_are_read_and_judged(loops):
  decoding = DECODING.replace(temperature=1.0, paths=2)
  costs.verify(tiny.target().model, prompt(), decoding, tiny.V)
  (run,) = loops
  state, read, q_logits = run(1)
  assert read.shape == (2, 1 + 2 * 3)
  assert q_logits.shape == (2, 3, 2, tiny.V)
  assert jax.tree.leaves(state.cache)[0].shape[2] == L + 2 * 3 + 1


def test_rows_have_keys_of_their_own():
  keys = costs.row_keys(3)
  expected = randomness.row_keys(jax.random.key(0), 3)
  assert (jax.random.key_data(keys) == jax.random.key_data(expected)).all()
